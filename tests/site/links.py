"""Reads a site's HTML with the standard library and lists the links that lead nowhere."""

from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from posixpath import normpath
from urllib.parse import unquote, urlsplit

POINTERS = {"a": "href", "link": "href", "object": "data"} | dict.fromkeys(("img", "script", "source", "iframe"), "src")


class Page(HTMLParser):
    """One page: the ids that can be linked to, and the addresses that it points at."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.ids |= {values[name] for name in ("id", "name") if values.get(name)}
        target = values.get(POINTERS.get(tag, ""))
        if target is not None:
            self.targets.append(target)

    handle_startendtag = handle_starttag


def html_pages(root: Path) -> list[str]:
    """Every page of the site, as paths with forward slashes, sorted."""
    vendored = {"_static", "_sources", "mathjax"}
    found = (path.relative_to(root) for path in root.rglob("*.html"))
    return sorted(path.as_posix() for path in found if path.parts[0] not in vendored)


def dead_links(root: Path) -> list[str]:
    """'page: target (why)' for each address inside the site that does not exist."""
    pages = {path: Page((root / path).read_text(encoding="utf-8")) for path in html_pages(root)}
    return [
        f"{path}: {target} ({why})"
        for path, page in pages.items()
        for target in dict.fromkeys(page.targets)
        if (why := _fault(root, pages, path, target))
    ]


def _fault(root: Path, pages: dict[str, Page], path: str, target: str) -> str | None:
    parts = urlsplit(target)
    if parts.scheme or parts.netloc:
        return None  # another site's address, or data:
    name = path
    if parts.path:
        name = normpath(str(PurePosixPath(path).parent / unquote(parts.path)))
        if parts.path.endswith("/"):
            name = normpath(f"{name}/index.html")
    if name.startswith("..") or not (root / name).is_file():
        return "no such file"
    if parts.fragment and name in pages and unquote(parts.fragment) not in pages[name].ids:
        return "no such place on that page"
    return None
