"""Names, headers and dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fastcap.archive.layout import (
    DTYPES,
    SHARD_NAME,
    WRITER_NAME,
    StreamSpec,
    TensorSpec,
    check_header,
    dtype_name,
    header,
    header_bytes,
    parse_stream,
    shard_name,
    shard_tensors,
    stream_json,
    writer_name,
)
from fastcap.errors import ArchiveError, ArchiveFormatError
from tests.support.archives import STREAMS
from tests.support.errors import message_of

TENSORS = shard_tensors(STREAMS, 3, {"batch:input_ids": 7, "label:text": 5})


def test_tensors_are_values_then_offsets_then_samples() -> None:
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in TENSORS] == [
        ("layers.0", "BF16", (3, 3)),
        ("layers.1", "F32", (3, 2, 2)),
        ("batch:input_ids", "I64", (7,)),
        ("label:text", "U8", (5,)),
        ("batch:input_ids:offsets", "I64", (4,)),
        ("label:text:offsets", "I64", (4,)),
        ("samples", "I64", (3,)),
    ]


@pytest.mark.parametrize("n_bytes", [0, 4096, 8192])
def test_a_header_is_whole_pages_and_stock_safetensors_reads_it(
    n_bytes: int, tmp_path: Path
) -> None:
    first = header(TENSORS, {"note": "é"}, n_bytes)
    n_data = sum(tensor.n_bytes for tensor in TENSORS)
    path = tmp_path / "shard.safetensors"
    path.write_bytes(first + bytes(n_data))

    assert len(first) == max(4096, n_bytes)
    assert header_bytes(first[:8], len(first) + n_data, "here") == len(first)
    check_header(first, len(first) + n_data, TENSORS, "here")
    with safe_open(path, "pt") as shard:
        assert set(shard.keys()) == {tensor.name for tensor in TENSORS}
        assert shard.metadata() == {"note": "é"}
        assert shard.get_tensor("layers.1").shape == (3, 2, 2)


def test_a_header_of_many_streams_takes_more_pages() -> None:
    tensors = [TensorSpec(f"layers.{i}.mlp", "F32", (3, 4)) for i in range(200)]
    first = header(tensors, {})
    assert len(first) % 4096 == 0
    assert len(first) > 4096
    check_header(first, len(first) + 200 * 48, tensors, "here")


def test_a_header_for_another_number_of_samples_is_refused() -> None:
    first = header(TENSORS, {})
    others = shard_tensors(STREAMS, 4, {"batch:input_ids": 7, "label:text": 5})
    assert message_of(
        ArchiveFormatError, lambda: check_header(first, 5000, others, "/a/shard")
    ) == (
        "/a/shard: its header does not describe 'layers.0' as BF16 of shape [4, 3], as the archive "
        "does."
    )


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_have_the_names_and_sizes_of_safetensors(name: str, tmp_path: Path) -> None:
    dtype = DTYPES[name]
    assert dtype_name(dtype, "any") == name
    tensors = [TensorSpec("value", name, (2,))]
    path = tmp_path / "shard.safetensors"
    path.write_bytes(header(tensors, {}) + bytes(2 * dtype.itemsize))
    with safe_open(path, "pt") as shard:
        assert shard.get_tensor("value").dtype == dtype


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.quint8])
def test_dtypes_that_cannot_be_stored(dtype: torch.dtype) -> None:
    assert message_of(ArchiveError, lambda: dtype_name(dtype, "layers.0")) == (
        f"'layers.0' has dtype {dtype}, which safetensors files cannot hold. Convert it: "
        "dtype=torch.float32, or for complex values reduce=torch.view_as_real."
    )


def test_names() -> None:
    assert writer_name(3, 12, "0123abcd") == "w-00003-12-0123abcd"
    assert writer_name(123456, 0, "0123abcd") == "w-123456-0-0123abcd"
    assert shard_name(7, 12) == "000007-012.safetensors"
    assert shard_name(1234567, 1234) == "1234567-1234.safetensors"
    assert WRITER_NAME.fullmatch(writer_name(99_999, 0, "deadbeef"))
    assert SHARD_NAME.fullmatch(shard_name(999_999_999, 99_999))


@pytest.mark.parametrize(
    "spec",
    [
        *STREAMS,
        StreamSpec("", "site", "F32", ()),
        StreamSpec("π/../😀\n", "label", "BOOL", (0, 3)),
        StreamSpec("wide", "site", "F64", (1,) * 32),
    ],
    ids=range(len(STREAMS) + 3),
)
def test_streams_survive_json(spec: StreamSpec) -> None:
    assert parse_stream(json.loads(json.dumps(stream_json(spec))), "here") == spec


def test_bytes_of_a_row() -> None:
    assert [spec.row_bytes for spec in STREAMS] == [6, 16, 8, 1]
    assert StreamSpec("none", "site", "F64", (4, 0)).row_bytes == 0
    assert StreamSpec("one", "site", "F64", ()).row_bytes == 8
