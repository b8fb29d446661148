"""MkDocs hooks: README as the home page, and files outside `docs/` that pages link to."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)((?:#[^)\s]*)?)\)")
LINKED = "files"
"""Where the site keeps copies of linked result files and sources."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add the README as `index.md`, and every linked file outside `docs/`."""
    files.append(File.generated(config, "index.md", content=home_page()))
    for path in sorted(outside_files(files)):
        files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links that leave `docs/` at the copies."""
    folder = posixpath.dirname(page.file.src_uri)

    def moved(link: re.Match[str]) -> str:
        path = outside(folder, link[1])
        if path is None:
            return link[0]
        return f"]({posixpath.relpath(site_path(path), folder or '.')}{link[2]})"

    return LINK.sub(moved, markdown)


def home_page() -> str:
    """The README with links relative to `docs/`."""

    def moved(link: re.Match[str]) -> str:
        return f"]({posixpath.relpath(link[1], 'docs')}{link[2]})"

    return LINK.sub(moved, (ROOT / "README.md").read_text())


def outside_files(files: Files) -> set[str]:
    return {
        path
        for file in files.documentation_pages()
        for target, _ in LINK.findall(file.content_string)
        if (path := outside(posixpath.dirname(file.src_uri), target)) is not None
    }


def outside(folder: str, target: str) -> str | None:
    """The path from the root of a link that leaves `docs/`; otherwise `None`."""
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    return None if path.startswith("docs/") else path


def site_path(path: str) -> str:
    # With another suffix MkDocs would render it as a page of its own.
    return f"{LINKED}/{path}.txt" if path.endswith((".md", ".py")) else f"{LINKED}/{path}"
