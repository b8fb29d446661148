"""Datasets in files: what they give, and what they say of files that cannot be used."""

from __future__ import annotations

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fastcap import FastcapWarning
from fastcap.cli.opening import open_dataset, vocabulary_size
from fastcap.datasets import ColumnCollator, LineFile, TokenFile
from fastcap.errors import ArgumentError, ArgumentTypeError, BatchError
from fastcap.huggingface import read_texts
from tests.support.errors import message_of

IDS = np.arange(24).reshape(6, 4)


def npy(path: Path, array: Any) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def raw(path: Path, array: Any, dtype: str) -> Path:
    np.asarray(array).astype(np.dtype(dtype).newbyteorder("<")).tofile(path)
    return path


def refused(path: Path, **options: Any) -> str:
    return message_of(ArgumentError, lambda: TokenFile(path, **options))


# Token files


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", ">u2", "int32", "uint32", "int64"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_a_npy_file_are_samples(tmp_path: Path, dtype: str, order: Any) -> None:
    dataset = TokenFile(npy(tmp_path / "a.npy", IDS.astype(dtype, order=order)))
    assert (len(dataset), dataset.n_tokens) == (6, 4)
    for index in (0, 5, -1):
        ids = dataset[index]["input_ids"]
        assert ids.dtype == torch.int64
        assert ids.tolist() == IDS[index].tolist()
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_raw_integers_are_cut_into_samples(tmp_path: Path, dtype: Any) -> None:
    ids = IDS.reshape(-1) + 60_000
    dataset = TokenFile(raw(tmp_path / "a.bin", ids, dtype), context_length=8, dtype=dtype)
    rows = [dataset[index]["input_ids"] for index in range(len(dataset))]
    assert torch.equal(torch.stack(rows), torch.from_numpy(ids).reshape(3, 8))


def test_one_long_row_of_a_npy_file_is_cut_too_and_what_is_left_over_is_said(
    tmp_path: Path,
) -> None:
    path = npy(tmp_path / "a.npy", IDS.reshape(-1))
    with pytest.warns(FastcapWarning) as caught:
        dataset = TokenFile(path, context_length=7)
    assert str(caught[0].message) == (
        f"The last 3 tokens of {path} do not fill a sample of 7, and are left out."
    )
    assert (len(dataset), dataset.n_left_over) == (3, 3)
    assert dataset[2]["input_ids"].tolist() == list(range(14, 21))


def test_loader_workers_and_pickles_open_the_file_themselves(tmp_path: Path) -> None:
    dataset = TokenFile(npy(tmp_path / "a.npy", IDS))
    dumped = pickle.dumps(dataset)
    assert len(dumped) < 1000
    assert pickle.loads(dumped)[3]["input_ids"].tolist() == IDS[3].tolist()
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=3, num_workers=1, multiprocessing_context="spawn"
    )
    batches = [batch["input_ids"] for batch in loader]
    assert torch.equal(torch.cat(batches), torch.from_numpy(IDS))


def test_a_token_file_that_changes_between_processes_is_noticed(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", IDS)
    dumped = pickle.dumps(TokenFile(path))
    npy(path, IDS[:2])
    assert message_of(ArgumentError, lambda: pickle.loads(dumped)) == (
        f"{path} has changed: it had 6 samples of 4 tokens, now 2 of 4. Leave it as it is during "
        "a run."
    )


def test_a_fingerprint_is_of_the_tokens_and_not_of_the_path(tmp_path: Path) -> None:
    prints = [
        TokenFile(npy(tmp_path / name, ids)).fingerprint()
        for name, ids in [("a.npy", IDS), ("b.npy", IDS), ("c.npy", IDS + 1)]
    ]
    assert prints[0] == prints[1] == json.loads(json.dumps(prints[0]))
    assert prints[0] != prints[2]
    assert prints[0] != TokenFile(npy(tmp_path / "d.npy", IDS[:5])).fingerprint()


def test_empty_files_are_refused(tmp_path: Path) -> None:
    empty = tmp_path / "a.bin"
    empty.touch()
    assert refused(empty) == f"{empty} is empty: it has no tokens."
    none = npy(tmp_path / "a.npy", IDS[:0])
    assert refused(none) == (
        f"{none} is empty: its shape is (0, 4). It needs at least one sample of one token."
    )


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenFile(tmp_path / "a.npy")


@pytest.mark.parametrize(
    "name", ["x.csv", "x.json", "x.jsonl.gz", "x.parquet", "x.pt", "x.arrow", "x.npz", "train"]
)
def test_bytes_of_another_format_are_never_taken_as_ids(tmp_path: Path, name: str) -> None:
    path = raw(tmp_path / name, IDS, "uint16")
    assert refused(path, context_length=4, dtype="uint16") == (
        f"{path} ends in {path.suffix!r}. Token ids are read from .npy, and raw ones from .bin; "
        "texts from .txt and .jsonl. Convert the file, or open it yourself and pass a dataset. Raw "
        "ids under another name: rename or link it to .bin."
    )


def test_other_files_that_are_called_bin_are_known_by_how_they_begin(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    torch.save({"input_ids": torch.arange(8)}, path)
    found = [refused(path, context_length=4, dtype="uint16")]
    with path.open("wb") as file:
        np.save(file, IDS)
    found += [refused(path, context_length=4, dtype="uint16")]
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 24
    path.write_bytes(header.tobytes() + IDS.astype("<u2").tobytes())
    found += [refused(path, context_length=4, dtype="uint16")]
    what = ["a zip file, as torch.save() writes it", "a .npy file"]
    what += ["tokens behind a header of 1,024 bytes, as llm.c writes them"]
    for kind, message in zip(what, found, strict=True):
        assert message == (
            f"{path} is {kind}, and not raw token ids. Save them with numpy.save() to a .npy file."
        )


def test_suffixes_in_capitals_are_the_same_suffixes(tmp_path: Path) -> None:
    npy(tmp_path / "a.npy", IDS).rename(tmp_path / "a.NPY")
    assert len(open_dataset(str(tmp_path / "a.NPY"))) == 6
    raw(tmp_path / "a.BIN", IDS, "uint16")
    options: dict[str, Any] = {"context_length": 4, "token_dtype": "uint16"}
    assert len(open_dataset(str(tmp_path / "a.BIN"), **options)) == 6
    (tmp_path / "a.JSONL").write_text('{"text": "One."}\n')
    assert open_dataset(str(tmp_path / "a.JSONL"))[0] == {"text": "One."}
    (tmp_path / "a.TXT").write_text("One.\n")
    assert open_dataset(str(tmp_path / "a.TXT"))[0] == {"text": "One."}


def test_arrays_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    assert refused(npy(path, IDS.astype("float32"))) == (
        f"{path} holds float32, and token ids are integers. Save them with ids.astype('uint32')."
    )
    assert refused(npy(path, IDS.reshape(2, 3, 4))) == (
        f"{path} has shape (2, 3, 4). Token ids are (n_samples, n_tokens), or one long row "
        "(n_tokens,) with context_length."
    )
    assert refused(npy(path, IDS), context_length=2) == (
        f"{path} has samples of 4 tokens, and context_length=2 was asked. Leave context_length "
        "out, or save ids.reshape(-1)."
    )
    assert refused(npy(path, IDS.astype("int32")), dtype="uint16") == (
        f"{path} holds int32, and dtype='uint16' was asked. Leave dtype out: a .npy file says it "
        "itself."
    )


@pytest.mark.parametrize("content", [b"no numpy file", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<u2'"])
def test_what_is_no_npy_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path} cannot be read as .npy: ")
    assert message.endswith(". Write it with numpy.save().")


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    path = npy(tmp_path / "a.npy", np.array([{"a": 1}]))
    assert "cannot be read as .npy" in refused(path)


def test_raw_files_need_a_dtype_and_whole_numbers(tmp_path: Path) -> None:
    path = raw(tmp_path / "a.bin", np.arange(7), "uint16")
    says_nothing = f"{path} is raw binary, which does not say what it holds: dtype must be "
    assert refused(path, context_length=2) == says_nothing + "'uint16' or 'uint32'."
    assert refused(path, context_length=2, dtype="int8") == (
        says_nothing + "'uint16' or 'uint32'; got 'int8'."
    )
    assert refused(path, context_length=2, dtype="uint32") == (
        f"{path} has 14 bytes, which is not a whole number of uint32 (4 bytes each). Is the dtype "
        "right, and is the file whole?"
    )
    assert refused(path, dtype="uint16") == (
        f"{path} is one long row of 7 tokens. Say how many make a sample: context_length."
    )
    assert refused(path, dtype="uint16", context_length=8) == (
        f"{path} has 7 tokens, fewer than one sample of context_length=8."
    )
    zero = message_of(ArgumentError, lambda: TokenFile(path, context_length=0))
    assert zero == "context_length must be at least 1; got 0."


def test_ids_that_the_model_does_not_have_are_refused_as_they_are_read(tmp_path: Path) -> None:
    dataset = TokenFile(npy(tmp_path / "a.npy", IDS), vocabulary_size=15)
    assert dataset[2]["input_ids"].max() == 11
    assert message_of(BatchError, lambda: dataset[3]) == (
        f"{dataset.path}, sample 3: token id 15, but the model has ids 0 to 14. Were the tokens "
        "made with this model's tokenizer, and is the dtype right?"
    )
    negative = TokenFile(npy(tmp_path / "b.npy", IDS - 1))
    assert message_of(BatchError, lambda: negative[0]) == (
        f"{negative.path}, sample 0: token id -1, but ids are not negative. Were the tokens made "
        "with this model's tokenizer, and is the dtype right?"
    )


# Files of lines


def jsonl(path: Path, *samples: Any) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples), encoding="utf-8")
    return path


def bad(path: Path, content: bytes, **options: Any) -> str:
    path.write_bytes(content)
    return message_of(ArgumentError, lambda: LineFile(path, **options))


TEXTS = ["One.", "Zwei: ä\u2028ö 🙂", " three "]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("has_last_end", [True, False])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_of_a_text_file_are_samples(
    tmp_path: Path, end: str, has_last_end: bool, mark: bytes
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(mark + (end.join(TEXTS) + (end if has_last_end else "")).encode())
    dataset = LineFile(path)
    assert [dataset[index]["text"] for index in (2, 0, 1)] == [TEXTS[2], TEXTS[0], TEXTS[1]]
    assert (len(dataset), dataset[-1]) == (3, {"text": TEXTS[2]})
    with pytest.raises(IndexError):
        dataset[3]


def test_objects_of_a_jsonl_file_give_texts_and_labels(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"q": "One.", "label": 1, "score": 1, "flag": True, "more": "x"},
        {"q": "Two.", "label": 0, "score": 0.5, "flag": False, "more": "y"},
    )
    dataset = LineFile(path, text_key="q", columns=["label", "score", "flag"])
    assert dataset[0] == {"q": "One.", "label": 1, "score": 1.0, "flag": True}
    # A column is of one type, whatever stands in one batch of it.
    assert [type(value) for value in dataset[0].values()] == [str, int, float, bool]


def test_chats_are_given_as_they_are(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hello"}]
    assert LineFile(jsonl(tmp_path / "a.jsonl", {"text": chat}))[0] == {"text": chat}


def test_lines_can_be_read_in_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(map(str, range(10))))
    dataset = LineFile(path)
    for context in ("fork", "spawn"):
        loader: DataLoader[Any] = DataLoader(
            dataset, batch_size=5, num_workers=2, multiprocessing_context=context
        )
        assert [text for batch in loader for text in batch["text"]] == list(map(str, range(10)))


def test_a_line_file_that_changes_between_processes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    dumped = pickle.dumps(LineFile(path))
    path.write_text("one\n")
    assert message_of(ArgumentError, lambda: pickle.loads(dumped)) == (
        f"{path} has changed since it was opened first. Leave it as it is during a run."
    )


def test_the_fingerprint_of_lines_is_of_their_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, text in zip(paths, ["one\ntwo\n", "one\ntwo\n", "one\ntoo\n"], strict=True):
        path.write_text(text)
    prints = [LineFile(path).fingerprint() for path in paths]
    assert prints[0] == prints[1]
    assert prints[0] != prints[2]
    assert prints[0] != LineFile(paths[0], text_key="t").fingerprint()


def test_lines_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = b'{"text": "one", "label": 1}\n'
    assert bad(path, b"") == f"{path} is empty: it has no lines."
    assert bad(path, good + b'{"txt": "two"}\n') == (
        f"{path}, line 2: no 'text', but the keys ['txt']."
    )
    assert bad(path, good + b'{"text": "two"}\n', columns=["label"]) == (
        f"{path}, line 2: no 'label', but the keys ['text']."
    )
    assert bad(path, good + b"{") == (
        f"{path}, line 2: not JSON (Expecting property name enclosed in double quotes: line 1 "
        "column 2 (char 1)): '{'."
    )
    assert bad(path, good + b"[1]") == (
        f'{path}, line 2: a list, not a JSON object such as {{"text": ...}}.'
    )
    assert bad(path, good + b'{"text": [{"role": "user", "content": "hi"}]}') == (
        f"{path}, line 2: a chat, and the lines before are texts, which are tokenized "
        "differently. Put them into two files."
    )
    assert bad(path, good + b'{"text": "two", "label": "b"}', columns=["label"]) == (
        f"{path}, line 2, 'label': 'b' is a str, and it was an int before. A column holds "
        "64-bit numbers or texts, the same in every line."
    )
    for value in ("9223372036854775808", "null", "[1]"):
        line = f'{{"text": "two", "label": {value}}}'.encode()
        message = bad(path, good + line, columns=["label"])
        assert message.startswith(f"{path}, line 2, 'label': {value.replace('null', 'None')} is a")
    assert bad(path, good + b"\xff\n").startswith(f"{path}, line 2 is not UTF-8: ")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("blank", [b"\n", b"  \t\n", b"\r\n"])
def test_blank_lines_are_refused_since_samples_are_numbered_by_line(
    tmp_path: Path, name: str, blank: bytes
) -> None:
    path = tmp_path / name
    assert bad(path, b'{"text": "one"}\n' + blank + b'{"text": "two"}\n') == (
        f"{path}, line 2 is blank. Samples are numbered by line, so remove it first, for example "
        f"with: sed -i '/^\\s*$/d' {name}"
    )


def test_other_files_and_labels_of_texts_are_refused(tmp_path: Path) -> None:
    assert bad(tmp_path / "a.csv", b"a,b\n") == (
        f"{tmp_path / 'a.csv'} ends in '.csv'. Texts are read from .txt (one per line) and "
        ".jsonl (one JSON object per line)."
    )
    assert bad(tmp_path / "a.txt", b"a\n", columns=["label"]) == (
        f"{tmp_path / 'a.txt'} has a text per line and no columns, and ['label'] were asked. Write "
        "a .jsonl file with one object per line."
    )


def test_an_item_that_is_neither_text_nor_chat_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": 3})
    assert message_of(ArgumentTypeError, lambda: LineFile(path)) == (
        f"{path}, line 2, 'text' is neither a text nor a chat but int: 3. A text is a string; a "
        "chat is a list of {'role': ..., 'content': ...}."
    )


# Labels beside batches


def lengths(texts: list[str]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([[len(text)] for text in texts])}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1, 0], torch.int64),
        ([0.1, 2.0], torch.float64),
        ([True, False], torch.bool),
        ([1, 0.5], torch.float64),
    ],
)
def test_labels_become_tensors_beside_the_batch(values: list[Any], dtype: torch.dtype) -> None:
    samples = [{"text": "a" * n, "y": value} for n, value in enumerate(values, start=1)]
    batch = ColumnCollator(lengths, columns=["y"])(samples)
    assert batch["input_ids"].tolist() == [[1], [2]]
    assert torch.equal(batch["y"], torch.tensor(values, dtype=dtype))
    assert batch["y"].dtype == dtype


def test_labels_that_are_texts_stay_a_list(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", *({"text": "a", "y": word} for word in ("dog", "cat")))
    dataset = LineFile(path, columns=["y"])
    batch = ColumnCollator(lengths, columns="y")([dataset[0], dataset[1]])
    assert batch["y"] == ["dog", "cat"]


def test_samples_that_have_no_label_or_one_that_is_no_number_are_refused() -> None:
    collate = ColumnCollator(lengths, columns=["y"])
    assert message_of(BatchError, lambda: collate([{"text": "a"}])) == (
        "A sample has no 'y'; it is or has ['text']."
    )
    assert message_of(BatchError, lambda: collate(["a"])) == (  # type: ignore[list-item]
        "A sample has no 'text'; it is or has str."
    )
    for values in ([1, "dog"], ["dog", 1]):
        mixed = [{"text": "a", "y": value} for value in values]
        assert message_of(BatchError, partial(collate, mixed)) == (
            "The column 'y' is 'dog', a str, in a batch. Columns are numbers for all samples, or "
            "texts for all samples."
        )
    clash = ColumnCollator(lengths, columns=["input_ids"])
    assert message_of(ArgumentError, lambda: clash([{"text": "a", "input_ids": 1}])) == (
        "Columns cannot be called ['input_ids']: batches have inputs of these names. Rename them."
    )


# What a command line names


def make_dataset() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.tensor([1, 2])}] * 3


HERE = "tests.test_datasets"
READY = make_dataset()
NUMBER = 3


def test_a_name_is_a_file_or_an_import_path(tmp_path: Path) -> None:
    tokens = npy(tmp_path / "a.npy", IDS)
    texts = jsonl(tmp_path / "a.jsonl", {"text": "one", "y": 1})
    ids = raw(tmp_path / "tokens.bin", IDS, "uint32")
    assert isinstance(open_dataset(str(tokens)), TokenFile)
    assert len(open_dataset(str(ids), context_length=12, token_dtype="uint32")) == 2
    assert open_dataset(str(texts), columns=["y"])[0]["y"] == 1
    assert len(open_dataset(f"{HERE}:make_dataset")) == 3
    assert open_dataset(f"{HERE}:READY") is READY


def test_names_of_nothing_and_options_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refuse(name: object, **options: Any) -> str:
        return message_of(ArgumentError, lambda: open_dataset(str(name), **options))

    hint = (
        "Give a file (.npy, .bin, .jsonl, .txt), or an import path of the form "
        "package.module:attribute."
    )
    assert refuse("nothing.npy") == f"--data 'nothing.npy' does not exist. {hint}"
    assert refuse(tmp_path) == f"--data {str(tmp_path)!r} is a folder. {hint}"
    assert refuse(f"{HERE}:NUMBER") == (
        f"--data '{HERE}:NUMBER' gives an int, and a dataset can be indexed or iterated. Name a "
        "dataset, a list, or a function without arguments that returns one."
    )
    texts = jsonl(tmp_path / "a.jsonl", {"text": "one"})
    assert refuse(texts, context_length=3) == (
        f"--context-length is not for texts, and --data {str(texts)!r} is. Leave it out."
    )
    tokens = npy(tmp_path / "a.npy", IDS)
    assert refuse(tokens, columns=["y"]) == (
        f"--columns is not for token ids, and --data {str(tokens)!r} is. Leave it out."
    )


class WithEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 2)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


def test_the_vocabulary_is_known_where_a_model_says_it() -> None:
    assert vocabulary_size(WithEmbedding()) == 11
    assert vocabulary_size(nn.Linear(1, 1)) is None


def test_readers_of_texts_agree_on_what_a_line_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("loading 10%\rloading 100%\nsecond\x0b\u2028line\r\nthird\n".encode())
    expected = ["loading 10%\rloading 100%", "second\x0b\u2028line", "third"]
    assert list(read_texts(path)) == expected
    assert [sample["text"] for sample in map(LineFile(path).__getitem__, range(3))] == expected


def test_half_a_character_is_found_before_a_run_begins(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One."}\n{"text": "Tw\\ud83d"}\n')
    message = message_of(ArgumentError, lambda: LineFile(path))
    assert message.startswith(
        f"{path}, line 2, 'text': character 2 is half of a surrogate pair, '\\ud83d', and not a "
        "character."
    )
    path.write_text('{"text": [{"role": "user", "content": "\\udc00"}]}\n')
    message = message_of(ArgumentError, lambda: LineFile(path))
    assert message.startswith(f"{path}, line 1, 'text', message 0: character 0 is half")
