"""What the executed chapters claim: collected from their outputs, placed in the site, shown on one page."""

import html
import re
from html.parser import HTMLParser
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.colon_fence import colon_fence_plugin

from executed import BookError, executed_pages
from llmflation.units import significant

MARKDOWN = MarkdownIt("commonmark").use(colon_fence_plugin)  # enough to tell a heading from a comment in a cell

INTRO = """\
(page-claims)=
# What this book claims

Every number below was computed while these pages were made, by the code you can read beside it.
Each is guarded: should the data, the code or a machine push it out of its range, the book refuses to be built.
So a sentence in this list is not remembered, it is checked, and each one leads to the place that earns it.
"""

KINDS = """
The mark after a number tells its kind: ● measured here, ▬ modelled by a formula, ○ quoted from a source, \
┄ assumed.
A number made from several wears the mark of its weakest part.
"""


def collect(build: Path) -> tuple[list[dict], list[dict]]:
    """All claims and all factors of the ledger, in the order of the chapters; `build` is _build.

    Raises BookError for an id that stands twice.
    """
    found = {"claim": [], "factor": []}
    for page, cells in executed_pages(build).items():
        places = _places(cells, build / "html" / f"{page}.html")
        title = next((heading for _, heading in places if heading), page)
        for cell, (anchor, heading) in zip(cells, places, strict=True):
            place = {"href": f"{page}.html" + (f"#{anchor}" if anchor else ""), "heading": heading}
            for output in cell.get("outputs", []):
                for kind, record in output.get("metadata", {}).get("llmflation", {}).items():
                    if kind in found:
                        found[kind].append({"chapter": Path(page).name, "chapter_title": title, **record, **place})
    for kind, records in found.items():
        _refuse_doubles(kind, records)
    return found["claim"], found["factor"]


def write_page(page: Path, claims: list[dict]) -> bool:
    """Write the page of claims; True when its text is new."""
    lines = [INTRO]
    for chapter in dict.fromkeys(c["chapter"] for c in claims):
        own = [c for c in claims if c["chapter"] == chapter]
        lines += [f"## {_plain(own[0]['chapter_title'])}", "", "| The claim | The number | Guarded range |",
                  "|---|---|---|", *(_row(c) for c in own), ""]
    lines.append(KINDS)
    machines = sorted({f"{c['machine']}, on {c['date']}" for c in claims})
    lines += [f"Computed on {_plain(m)}." for m in machines]
    text = "\n".join(lines).rstrip() + "\n"
    if page.exists() and page.read_text("utf-8") == text:
        return False
    page.parent.mkdir(exist_ok=True)
    page.write_text(text, "utf-8", newline="\n")
    return True


def _places(cells: list[dict], page: Path) -> list[tuple[str, str]]:
    """For each cell, the anchor and the text of the nearest heading above it (the cell's own included)."""
    sections = _Sections()
    sections.feed(page.read_text("utf-8"))
    counts = [_count_headings(cell) for cell in cells]
    if sum(counts) != len(sections.found):
        raise BookError(f"{page.name} shows {len(sections.found)} headings, its source has {sum(counts)}: "
                        "no claim can be placed. A heading inside a directive is the usual cause.")
    places, above = [], 0
    for count in counts:
        above += count
        places.append(sections.found[above - 1] if above else ("", ""))
    return places


def _count_headings(cell: dict) -> int:
    if cell["cell_type"] != "markdown":
        return 0
    return sum(t.type == "heading_open" and t.level == 0 for t in MARKDOWN.parse(cell["source"]))


class _Sections(HTMLParser):
    """Every section with a heading of its own: (id, the heading's text), from top to bottom."""

    def __init__(self):
        super().__init__()
        self.found, self._open, self._inside = [], "", False

    def handle_starttag(self, tag, attrs):
        if tag == "section":
            self._open = dict(attrs).get("id", "")
        elif re.fullmatch(r"h[1-6]", tag) and self._open:
            self.found.append((self._open, ""))
            self._open, self._inside = "", True
        elif tag == "a" and "headerlink" in dict(attrs).get("class", ""):  # the theme's link sign
            self._inside = False

    def handle_endtag(self, tag):
        if re.fullmatch(r"h[1-6]", tag):
            self._inside = False

    def handle_data(self, data):
        if self._inside:
            anchor, text = self.found[-1]
            self.found[-1] = (anchor, text + data)


def _refuse_doubles(kind: str, records: list[dict]) -> None:
    first: dict[str, dict] = {}
    for record in records:
        if (other := first.setdefault(record["id"], record)) is not record:
            raise BookError(f"the id {record['id']!r} names two {kind}s, one in {other['href']}, one in "
                            f"{record['href']}: an id must be unique in the whole book. Rename one of them.")


def _row(claim: dict) -> str:
    kind = claim["kind"]
    number = f'<span class="num {kind}" title="{kind}">{_plain(claim["text"])}</span>'
    title = html.escape(claim["heading"], quote=True)
    statement = f'<a href="../{claim["href"]}" title="{title}">{_plain(claim["statement"])}</a>'
    return f"| {statement} | {number} | {_range(claim['low'], claim['high'])} |"


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"at least {significant(low)}" if high is None else f"at most {significant(high)}"
    return f"{significant(low)} to {significant(high)}"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]<>$|#~])", r"\\\1", text)
