"""Checksums of parts become the checksum of the whole."""

from __future__ import annotations

import random
import zlib

import pytest

from fastcap.archive.crc import combine


@pytest.mark.parametrize("seed", range(50))
def test_checksums_of_parts_combine(seed: int) -> None:
    draw = random.Random(seed)
    parts = [draw.randbytes(draw.choice([0, 1, 7, 8, 4096, 100_003])) for _ in range(4)]
    whole = 0
    for part in parts:
        whole = combine(whole, zlib.crc32(part), len(part))
    assert whole == zlib.crc32(b"".join(parts))


@pytest.mark.parametrize("n_bytes", [0, 1, 2**20, 2**31, 2**32 - 1, 2**32, 2**40])
def test_lengths_beyond_32_bits(n_bytes: int) -> None:
    zeros = zlib.crc32(b"")
    for bit in reversed(range(n_bytes.bit_length())):  # n zeros, by doubling
        zeros = combine(zeros, zeros, n_bytes >> (bit + 1))
        if n_bytes >> bit & 1:
            zeros = combine(zeros, zlib.crc32(b"\0"), 1)
    if n_bytes <= 2**20:
        assert zeros == zlib.crc32(bytes(n_bytes))
    half = n_bytes // 3
    assert combine(0x12345678, 0x9ABCDEF0, n_bytes) == combine(
        combine(0x12345678, 0, half), 0x9ABCDEF0, n_bytes - half
    )
