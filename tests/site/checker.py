"""Opens one page of the built site in a real browser, in one look, and lists everything that is wrong with it.

A page is loaded once for each look (light, dark, phone, dark phone); that one visit serves all the checks.
"""

import functools
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Page

KINDS = {"measured", "quoted", "modelled", "assumed"}
MIN_TEXT_PX = 8.0  # in a figure as shown; below it nobody reads


@dataclass(frozen=True)
class Look:
    """How a reader sees a page: window width in pixels and colour scheme."""

    name: str
    width: int
    scheme: str


LOOKS = (Look("light", 1280, "light"), Look("dark", 1280, "dark"),
         Look("phone", 360, "light"), Look("phone-dark", 360, "dark"))  # fmt: skip


@dataclass
class Log:
    """What the browser asked for and complained of while a page was open."""

    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("requestfailed", lambda request: self.failed.append(f"{request.url} ({request.failure})"))
        page.on("response", lambda answer: self._note_status(answer.status, answer.url))
        page.on("console", lambda message: message.type == "error" and self.errors.append(message.text))
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error}"))

    def _note_status(self, status: int, url: str) -> None:
        if status >= 400:
            self.failed.append(f"{url} (status {status})")


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site's files; `overlay` holds pages that a test has changed."""

    def __init__(self, *args, overlay: dict[str, str], **kwargs):
        self.overlay = overlay
        super().__init__(*args, **kwargs)

    def do_GET(self):
        page = self.overlay.get(urlsplit(self.path).path.lstrip("/"))
        if page is None:
            super().do_GET()
            return
        body = page.encode()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(self.path))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Say nothing: the browser's own log is what the tests read."""


@contextmanager
def serve(root: Path, overlay: dict[str, str] | None = None) -> Iterator[str]:
    """Serve `root` on a free loopback port; gives the base address, which ends in a slash."""
    handler = functools.partial(_Handler, directory=str(root), overlay=overlay or {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()
            thread.join()


def new_context(browser: Browser, look: Look, javascript: bool = True) -> BrowserContext:
    """A browser window for one look; pages that share it share its cache."""
    return browser.new_context(
        viewport={"width": look.width, "height": 900}, color_scheme=look.scheme, java_script_enabled=javascript
    )


def visit(context: BrowserContext, base: str, path: str, screenshot: Path | None = None) -> list[str]:
    """Open one page and return its faults, each one line: what, and where. An empty list is a good page."""
    page, log = context.new_page(), Log()
    log.watch(page)
    try:
        open_page(page, base + path)
        if screenshot:
            screenshot.parent.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=screenshot, full_page=True)
        seen = page.evaluate(LOOK_AROUND)
        return [*_network_faults(log, base), *_layout_faults(seen), *_number_faults(seen["numbers"]),
                *_figure_faults(seen["images"]), *_math_faults(seen["math"]), *_axe_faults(page)]  # fmt: skip
    finally:
        page.close()


def open_page(page: Page, url: str) -> None:
    """Open a page and wait until the mathematics is typeset and every picture has arrived."""
    page.goto(url, wait_until="load")
    page.evaluate(SETTLE)


def _network_faults(log: Log, base: str) -> list[str]:
    foreign = [url for url in log.requests if not url.startswith((base, "data:", "blob:"))]
    return [
        *(f"third-party request: {url}" for url in dict.fromkeys(foreign)),
        *(f"failed request: {what}" for what in dict.fromkeys(log.failed)),
        *(f"console error: {text}" for text in dict.fromkeys(log.errors)),
    ]


def _layout_faults(seen: dict) -> list[str]:
    if seen["scrollWidth"] <= seen["clientWidth"]:
        return []
    return [f"the page scrolls sideways: {seen['scrollWidth']} px of content in {seen['clientWidth']} px, "
            f"because of {', '.join(seen['wide']) or 'an element that cannot be told'}"]  # fmt: skip


def _number_faults(numbers: list[dict]) -> list[str]:
    faults = []
    for number in numbers:
        kinds = KINDS & set(number["classes"])
        if "num" not in number["classes"] or len(kinds) != 1:
            faults.append(f"number {number['text']!r} needs class num and one kind, has {number['classes']}")
        elif number["mark"] in ("none", "normal", '""'):
            faults.append(f"number {number['text']!r} ({kinds.pop()}) shows no mark of its kind")
    return faults


def _figure_faults(images: list[dict]) -> list[str]:
    faults = []
    for image in images:
        name, alt = image["src"].split("?")[0].rsplit("/", 1)[-1], image["alt"].strip()
        if not image["width"]:
            faults.append(f"picture {name} does not show")
        if not image["figure"]:
            continue
        if len(alt) < 30 or name.rsplit(".", 1)[0] in alt or alt.lower().startswith(("a plot", "image of")):
            faults.append(f"figure {name} needs an alt text that says what it shows, has {alt!r}")
        if not name.endswith(".svg"):
            faults.append(f"figure {name} is not SVG")
        elif image["textPx"] and min(image["textPx"]) < MIN_TEXT_PX:
            faults.append(f"figure {name} has text of {min(image['textPx']):.1f} px, less than {MIN_TEXT_PX} px")
    return faults


def _math_faults(math: dict) -> list[str]:
    if math["errors"]:
        return [f"mathematics does not parse: {text}" for text in math["errors"]]
    if math["typeset"] < math["wanted"]:
        return [f"mathematics is not typeset: {math['typeset']} of {math['wanted']}"]
    return []


def _axe_faults(page: Page) -> list[str]:
    found = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    return [f"axe {rule['id']} ({rule['help']}): {' '.join(map(str, node['target']))} | {node['html'][:160]}"
            for rule in found for node in rule["nodes"]]  # fmt: skip


SETTLE = """async () => {
  await window.MathJax?.startup?.promise;
  for (const image of document.images) image.loading = "eager";
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)));
}"""

# Everything that the checks need to know of the page, gathered in one go.
LOOK_AROUND = r"""async () => {
  const root = document.scrollingElement;
  const inScroller = (el) => {
    for (let up = el.parentElement; up && up !== document.body; up = up.parentElement)
      if (getComputedStyle(up).overflowX !== "visible" || getComputedStyle(up).position === "fixed") return true;
    return false;
  };
  const name = (el) => el.tagName.toLowerCase() + [...el.classList].map((c) => "." + c).join("");
  const wide = [...document.body.querySelectorAll("*")]
    .filter((el) => el.getBoundingClientRect().right > root.clientWidth + 1 && !inScroller(el)).map(name);

  // The sizes of the words in a matplotlib figure, in pixels as shown: words are glyph outlines scaled
  // from a size of 100 points, or real text with a font size.
  const textSizes = async (image) => {
    const svg = new DOMParser().parseFromString(await (await fetch(image.src)).text(), "image/svg+xml");
    const shown = image.getBoundingClientRect().width / (svg.documentElement.viewBox.baseVal.width || Infinity);
    const outlines = [...svg.querySelectorAll('g[id^="text_"] > g[transform*="scale("]')]
      .map((g) => 100 * Number(g.getAttribute("transform").match(/scale\((-?[\d.]+)/)[1]));
    const words = [...svg.querySelectorAll("text")]
      .map((t) => Number((t.getAttribute("style") || "").match(/([\d.]+)px/)?.[1] || t.getAttribute("font-size")));
    return [...outlines, ...words].filter((size) => size > 0).map((size) => size * shown);
  };
  const main = document.querySelector("article") || document.body;
  const images = await Promise.all([...document.images].map(async (image) => {
    const figure = main.contains(image);
    const svg = figure && image.naturalWidth && /\.svg(\?|$)/.test(image.src);
    const textPx = svg ? await textSizes(image) : [];
    return {src: image.src, alt: image.alt, width: image.naturalWidth, figure, textPx};
  }));
  // A glued value stands in a span of class text_html; so one that lacks its own span is seen as well.
  const glued = [...main.querySelectorAll("span.text_html, .num")].map((el) => el.querySelector(".num") || el);
  const numbers = [...new Set(glued)]
    .map((el) => ({text: el.textContent, classes: [...el.classList], mark: getComputedStyle(el, "::after").content}));
  const math = {wanted: document.querySelectorAll(".math").length,
    typeset: document.querySelectorAll(".math mjx-container").length,
    // MathJax sets a command that it does not know in red and says nothing.
    errors: [...document.querySelectorAll('mjx-merror, mjx-container [style*="color: red"]')]
      .map((el) => el.outerHTML)};
  return {scrollWidth: root.scrollWidth, clientWidth: root.clientWidth, wide: [...new Set(wide)].slice(0, 5),
    images, numbers, math};
}"""
