"""Alternative texts of the figures: computed with the figure, so that the number in them cannot grow old.

A cell names its figure in `mystnb: image: alt:`; the words come with the output (metadata `llmflation: alt`).
Sphinx knows only the name, so the words are put into the finished page.
"""

import html
from pathlib import Path

from executed import BookError, executed_pages


def write_alt_texts(build: Path) -> None:
    """Put the words of every figure into the pages of `build`/html; raises BookError for a figure without any."""
    for page, cells in executed_pages(build).items():
        path = build / "html" / f"{page}.html"
        text = before = path.read_text("utf-8")
        for cell in cells:
            options = cell.metadata.get("mystnb", {})
            figure, alt = options.get("figure", {}).get("name"), options.get("image", {}).get("alt")
            if "figure" in options and not (figure and alt):
                raise BookError(f"{page}: the figure {figure or 'without a name'} lacks its name or its `image: alt:`. "
                                "Give both; a figure of llmflation.viz takes its own name as alt.")
            if figure and alt == figure:
                text = text.replace(f'alt="{figure}"', f'alt="{html.escape(_words(cell, figure, page))}"')
        if text != before:
            path.write_text(text, "utf-8", newline="\n")


def _words(cell, figure: str, page: str) -> str:
    for output in cell.outputs:
        if words := output.get("metadata", {}).get("llmflation", {}).get("alt"):
            return words
    raise BookError(f"{page}: the figure {figure} comes without a text alternative. Make it with "
                    "llmflation.viz, or write the words in its `alt:`.")
