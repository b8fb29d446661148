"""Draw the layers of fastcap into docs/design/architecture.md: `python -m tests.architecture`.

The drawing is the table that `tests/test_architecture.py` enforces, and the sentences are the
modules' own docstrings, so neither can drift from the code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.test_architecture import LEVELS, PACKAGE

PAGE = Path(__file__).parent.parent / "docs/design/architecture.md"
BLOCK = re.compile(r"(<!-- levels -->\n).*?(<!-- end of levels -->)", re.DOTALL)


def render() -> str:
    """What stands between the marks."""
    return "\n".join([*drawing(), "", *table(), ""])


def drawing() -> Iterator[str]:
    yield "```text"
    for number, rooms in reversed(list(enumerate(LEVELS, 1))):
        yield f"{number:>2}  {'   '.join(map(title, sorted(rooms)))}"
    yield "```"


def table() -> Iterator[str]:
    yield "| folder or module | contents |"
    yield "|---|---|"
    for rooms in reversed(LEVELS):
        for room in sorted(rooms):
            yield f"| `{title(room)}` | {sentence(room)} |"


def title(room: str) -> str:
    return f"{room}/" if (PACKAGE / room).is_dir() else room


def sentence(room: str) -> str:
    """The first paragraph of the module's docstring."""
    folder = PACKAGE / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def rewritten(page: str) -> str:
    """The page with the block as it should be."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{render()}\n{found[2]}", page)


if __name__ == "__main__":
    PAGE.write_text(rewritten(PAGE.read_text()))
