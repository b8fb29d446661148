"""Mistakes and odd inputs: what users do, in groups; `docs/mistakes.md` has what comes of it."""

from __future__ import annotations

from tests.support.mistakes import archives, commands, data, sites, stores, texts, values
from tests.support.mistakes.case import Case

GROUPS: dict[str, list[Case]] = {
    **sites.GROUPS,
    **data.GROUPS,
    **values.GROUPS,
    **stores.GROUPS,
    **archives.GROUPS,
    **texts.GROUPS,
    **commands.GROUPS,
}
"""Every case, by the title of its group on the page."""

CASES = [(group, case) for group, cases in GROUPS.items() for case in cases]
