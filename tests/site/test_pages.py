"""Every page of the built site, opened in a real browser: light and dark, on a desk and on a phone."""

import pytest
from checker import LOOKS, new_context, visit
from links import html_pages
from site_paths import SCREENS, SITE

PAGES = html_pages(SITE)
SEARCH = "search.html"  # made of JavaScript alone; it says so where there is none


@pytest.fixture(scope="module")
def contexts(browser):
    opened = {look.name: new_context(browser, look) for look in LOOKS}
    yield opened
    for context in opened.values():
        context.close()


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: look.name)
@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_no_fault_in_any_look(contexts, base, path, look):
    shot = SCREENS / f"{path.removesuffix('.html').replace('/', '.')}.{look.name}.png"
    faults = visit(contexts[look.name], base, path, shot)
    if faults:
        header = f"{path} ({look.name}, {look.width} px) has {len(faults)} fault(s):"
        pytest.fail("\n".join([header, *(f"  - {fault}" for fault in faults)]), pytrace=False)


@pytest.fixture(scope="module")
def without_javascript(browser):
    context = new_context(browser, LOOKS[0], javascript=False)
    yield context
    context.close()


@pytest.mark.parametrize("path", [path for path in PAGES if path != SEARCH])
def test_a_page_reads_without_javascript(without_javascript, base, path):
    page = without_javascript.new_page()
    page.goto(base + path, wait_until="load")
    seen = page.evaluate("""() => {
      const folded = "details:not([open]), .sd-tab-content";  // both open without JavaScript
      const shown = (el) => el.checkVisibility() || el.closest(folded);
      const all = (what) => [...document.querySelectorAll(what)];
      return {words: document.querySelector("article").innerText.split(/\\s+/).length,
              hidden: all("article :is(h1, h2, p, pre, table, img, .admonition)")
                .filter((el) => !shown(el) && el.getAttribute("role") !== "heading")
                .map((el) => el.outerHTML.slice(0, 120)),
              broken: all("article img").filter((image) => !image.naturalWidth).map((image) => image.src),
              navigation: all("nav a[href]").filter((link) => link.checkVisibility()).length};
    }""")
    page.close()
    assert seen["words"] > 3, f"{path} has no text without JavaScript"
    assert not seen["hidden"], f"{path} hides, without JavaScript: {seen['hidden']}"
    assert not seen["broken"], f"{path} shows no picture, without JavaScript: {seen['broken']}"
    linked = len(PAGES) - 2  # the index of words and the search page are in no table of contents
    assert seen["navigation"] >= linked, f"{path}: only {seen['navigation']} links lead on"


def test_the_search_finds_a_word_without_the_network(contexts, base, site):
    page = contexts["light"].new_page()
    page.goto(base + SEARCH + "?q=token")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    found = [link.get_attribute("href") for link in page.query_selector_all("#search-results li a")]
    page.close()
    assert any("01-llmflation" in address for address in found), found
