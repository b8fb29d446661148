"""CRC-32 of a whole from those of its parts, so that parts may be checksummed as they arrive.

`zlib.crc32` computes the checksum of a run of bytes in order. `combine` is zlib's `crc32_combine`
(zlib 1.2.13, crc32.c), which Python does not expose: appending n zero bytes to a message
multiplies its checksum by x^(8n) modulo the CRC's polynomial, and checksums add by xor.
"""

from __future__ import annotations

from functools import lru_cache

_POLYNOMIAL = 0xEDB88320  # bit-reversed, as zlib's
_ONE = 1 << 31
_X8 = 1 << 23


def combine(first: int, second: int, second_bytes: int) -> int:
    """The CRC-32 of two runs of bytes, one after the other.

    Args:
        first: The checksum of the first.
        second: The checksum of the second.
        second_bytes: How long the second is.

    Examples:
        >>> import zlib
        >>> combine(zlib.crc32(b"fast"), zlib.crc32(b"cap"), 3) == zlib.crc32(b"fastcap")
        True
    """
    return _multiply(_power(second_bytes), first) ^ second


@lru_cache(maxsize=4096)
def _power(n_bytes: int) -> int:
    """x^(8 n_bytes) modulo the polynomial."""
    result, square = _ONE, _X8
    while n_bytes:
        if n_bytes & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        n_bytes >>= 1
    return result


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & _ONE:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ (_POLYNOMIAL if b & 1 else 0)
    return product
