"""Files outside docs/ that pages link to: which they are, the page that shows one, and the links that lead there."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

LINK = re.compile(r"(?P<text>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?(?P<end>\))")
"""A link of Markdown to a file, not to an address and not to an anchor of the same page."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json", ".toml": "toml", ".cpp": "cpp"}


def linked_files(root: Path, pages: Iterable[Path], taken: set[str]) -> list[str]:
    """Paths in the repository of what pages link to and the site lacks; files that are shown may link to more."""
    found: dict[str, None] = {}
    waiting = sorted(pages)
    while waiting:
        page = waiting.pop()
        for link in LINK.finditer(page.read_text(encoding="utf-8")):
            path = _in_repository(root, page, link["target"])
            if path and not path.startswith("docs/") and path not in taken and path not in found:
                found[path] = None
                if path.endswith(".md"):
                    waiting.append(root / path)
    return sorted(found)


def file_page(root: Path, path: str) -> str:
    """The page of a file: Markdown as it stands, a folder as a list of names, anything else as code."""
    file = root / path
    if file.is_dir():
        names = [entry.name + "/" * entry.is_dir() for entry in sorted(file.iterdir()) if entry.name[0] not in "._"]
        return f"# {path}/\n\n" + "".join(f"* `{name}`\n" for name in names)
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        return text
    return f"# {path}\n\n````{LANGUAGES.get(file.suffix, 'text')}\n{text}\n````\n"


def relative_link(root: Path, place: str, page: str, link: re.Match[str], written: Mapping[str, str]) -> str:
    """A link as the site needs it; one that leads nowhere stays as it is, and the strict build tells of it.

    Args:
        root: the repository.
        place: where the page that holds the link stands in the repository.
        page: where it stands on the site.
        link: a match of `LINK`.
        written: pages of the site that are files of the repository outside docs/.
    """
    path = _in_repository(root, root / place, link["target"])
    if path is None:
        return link[0]
    pages = {source: name for name, source in written.items()}
    there = path.removeprefix("docs/") if path.startswith("docs/") else pages.get(path, f"files/{path}.md")
    target = os.path.relpath(there, os.path.dirname(page) or ".")  # noqa: PTH120 (a path of the site, not of the disk)
    return f"{link['text']}{target}{link['anchor'] or ''}{link['end']}"


def _in_repository(root: Path, page: Path, target: str) -> str | None:
    path = Path(os.path.normpath(page.parent / target))
    return str(path.relative_to(root)) if path.exists() and path.is_relative_to(root) else None
