"""The command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

import fastcap
from tests.support.datasets import make_ids
from tests.support.mistakes.case import Case, CommandError, oracle
from tests.support.models import LanguageModel

HERE = __name__
IDS = make_ids(7)


def make() -> nn.Module:
    return LanguageModel()


def fails() -> nn.Module:
    raise OSError("no weights here")


def samples() -> list[dict[str, Tensor]]:
    return [{"input_ids": ids} for ids in IDS]


def no_dataset() -> int:
    return 7


def fastcap_command(*words: str) -> str:
    """What a command prints.

    Raises:
        CommandError: It ended with another status than 0; the text is its last line.
    """
    from typer.testing import CliRunner

    from fastcap.cli.app import make_app
    from fastcap.cli.command import spread

    result = CliRunner().invoke(make_app(), spread(list(words)))
    if result.exit_code == 0:
        return result.stdout
    if not isinstance(result.exception, SystemExit):
        assert result.exception is not None
        raise result.exception
    raise CommandError(result.exit_code, result.stderr.strip().splitlines()[-1])


def tokens(folder: Path, ids: Any = None, name: str = "ids.npy") -> str:
    path = folder / name
    np.save(path, IDS.numpy().astype("uint16") if ids is None else ids)
    return str(path)


def extract(*options: str, model: str = "make", data: Callable[[Path], str] = tokens) -> Any:
    """A run of `fastcap extract` with more options, and the values it wrote."""

    def do(folder: Path) -> Any:
        out = folder / "acts"
        given = ("--data", data(folder), "--sites", "norm", "--folder", str(out))
        name = model if ":" in model or "/" in model else f"{HERE}:{model}"
        fastcap_command("extract", name, *given, *options)
        return fastcap.open_archive(out)["norm"][:]

    return do


def file_of(name: str, text: str) -> Callable[[Path], str]:
    def write(folder: Path) -> str:
        path = folder / name
        path.write_text(text)
        return str(path)

    return write


def values(**options: Any) -> Callable[[], Tensor]:
    return lambda: oracle(**options)["norm"]


COMMANDS = [
    Case("a command that does not exist", lambda _: fastcap_command("extrct"), needs="typer"),
    Case("an option that does not exist", extract("--batchsize", "3"), needs="typer"),
    Case("an option without its value", extract("--batch-size"), needs="typer"),
    Case("`--batch-size three`", extract("--batch-size", "three"), needs="typer"),
    Case("`--batch-size 0`", extract("--batch-size", "0"), needs="typer"),
    Case(
        "`extract` without `--folder`",
        lambda _: fastcap_command("extract", f"{HERE}:make", "--data", "a.npy", "--sites", "norm"),
        needs="typer",
    ),
    Case("a model that is no path and no import", extract(model="some/model"), needs="typer"),
    Case("a module that cannot be imported", extract(model="no_such_module:make"), needs="typer"),
    Case("a module without such an attribute", extract(model=f"{HERE}:mak"), needs="typer"),
    Case("a model function that raises", extract(model="fails"), needs="typer"),
    Case("a model that is a list", extract(model="samples"), needs="typer"),
    Case(
        "a folder without a `config.json`, as model",
        lambda folder: extract(model=f"{folder}/")(folder),
        needs="typer",
    ),
    Case(
        "a misspelt site",
        lambda folder: fastcap_command(
            "extract",
            f"{HERE}:make",
            "--data",
            tokens(folder),
            "--sites",
            "nrom",
            "--folder",
            str(folder / "acts"),
        ),
        needs="typer",
    ),
    Case(
        "several sites behind one `--sites`",
        lambda folder: [
            fastcap_command(
                "extract",
                f"{HERE}:make",
                "--data",
                tokens(folder),
                "--sites",
                "norm",
                "layers.0",
                "--folder",
                str(folder / "acts"),
            ),
            fastcap.open_archive(folder / "acts").sites,
        ][1],
        lambda: ["norm", "layers.0"],
        "Each is a site",
        needs="typer",
    ),
    Case(
        "a data file that does not exist",
        extract(data=lambda folder: str(folder / "ids.npy")),
        needs="typer",
    ),
    Case("a folder as data", extract(data=str), needs="typer"),
    Case(
        "a table, `ids.csv`, as token ids",
        extract(data=file_of("ids.csv", "1,2,3\n4,5,6\n")),
        needs="typer",
    ),
    Case(
        "a table that is called `.bin`, without `--token-dtype`",
        extract(data=file_of("ids.bin", "1,2,3\n4,5,6\n")),
        needs="typer",
    ),
    Case(
        "the same, and `--token-dtype uint16`: ids beyond the vocabulary",
        extract(
            "--token-dtype",
            "uint16",
            "--context-length",
            "2",
            data=file_of("ids.bin", "1,2,3\n4,5,6\n"),
            model="with_vocabulary",
        ),
        needs="typer",
    ),
    Case("a text that is called `.npy`", extract(data=file_of("ids.npy", "1,2,3")), needs="typer"),
    Case(
        "a `.npy` of floats",
        extract(data=lambda folder: tokens(folder, IDS.numpy() * 0.5)),
        needs="typer",
    ),
    Case(
        "a `.npy` of one long row, without `--context-length`",
        extract(data=lambda folder: tokens(folder, IDS.numpy().reshape(-1))),
        needs="typer",
    ),
    Case(
        "a `.npy` of one long row, and `--context-length 5`",
        extract(
            "--context-length", "5", data=lambda folder: tokens(folder, IDS.numpy().reshape(-1))
        ),
        values(),
        "A sample for each 5 tokens",
        needs="typer",
    ),
    Case(
        "a `.npy` of three dimensions",
        extract(data=lambda folder: tokens(folder, IDS.numpy()[None])),
        needs="typer",
    ),
    Case(
        "a dataset function that returns a number",
        extract(data=lambda _: f"{HERE}:no_dataset"),
        needs="typer",
    ),
    Case(
        "a dataset by its import path",
        extract(data=lambda _: f"{HERE}:samples"),
        values(),
        "Its samples",
        needs="typer",
    ),
    Case(
        "texts, and a model that has no tokenizer",
        extract(data=file_of("a.txt", "one\n")),
        needs="typer",
    ),
    Case("`--max-tokens` with token ids", extract("--max-tokens", "3"), needs="typer"),
    Case("`--columns` with token ids", extract("--columns", "y"), needs="typer"),
    Case("`--positions 1:x`", extract("--positions", "1:x"), needs="typer"),
    Case("`--positions 9` of 5", extract("--positions", "9"), needs="typer"),
    Case(
        "`--positions -1`",
        extract("--positions", "-1"),
        values(positions=-1),
        "The last position",
        needs="typer",
    ),
    Case("`--dtype float17`", extract("--dtype", "float17"), needs="typer"),
    Case("`--reduce median`", extract("--reduce", "median"), needs="typer"),
    Case("`--rank 3` of one process", extract("--rank", "3"), needs="typer"),
    Case(
        "`inspect` of a folder that is no archive",
        lambda folder: fastcap_command("inspect", str(folder)),
        needs="typer",
    ),
    Case(
        "`inspect` of a folder that does not exist",
        lambda folder: fastcap_command("inspect", str(folder / "acts")),
        needs="typer",
    ),
    Case(
        "`sites` of a model that is no model",
        lambda _: fastcap_command("sites", f"{HERE}:no_dataset"),
        needs="typer",
    ),
    Case(
        "`bench` of a model that does not say its vocabulary",
        lambda _: fastcap_command("bench", f"{HERE}:make", "--sites", "norm"),
        needs="typer",
    ),
]


class WithVocabulary(LanguageModel):
    """Says how many ids it has, as models of transformers do."""

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding


def with_vocabulary() -> nn.Module:
    return WithVocabulary()


GROUPS = {"Command line": COMMANDS}
