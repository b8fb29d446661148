"""How numbers are said in reports."""

from __future__ import annotations


def counted(number: int, one: str, more: str | None = None) -> str:
    """A number and what it is of.

    Example:
        >>> counted(1, "site"), counted(4, "site"), counted(2, "pass", "passes")
        ('1 site', '4 sites', '2 passes')
    """
    return f"{number} {one if number == 1 else more or one + 's'}"


def format_secs(secs: float) -> str:
    """Three digits, in the unit that fits.

    Example:
        >>> format_secs(2.0), format_secs(0.0715), format_secs(4.2e-6)
        ('2 s', '71.5 ms', '4.2 µs')
    """
    for scale, unit in ((1.0, "s"), (1e3, "ms")):
        if secs * scale >= 1:
            return f"{secs * scale:.3g} {unit}"
    return f"{1e6 * secs:.3g} µs"
