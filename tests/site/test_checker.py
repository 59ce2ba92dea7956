"""The checker itself: a page of the site is broken in many ways at once, and the checker must name each of them."""

import pytest
from checker import LOOKS, new_context, serve, visit
from site_paths import SITE

PAGE, MATHS = "index.html", "pages/notation.html"
LIGHT, PHONE = LOOKS[0], LOOKS[2]

# what is put in at the end of the page -> what the checker must say of it
FLAWS = {
    '<script src="https://cdn.example/x.js"></script>': "third-party request: https://cdn.example/x.js",
    '<style>@font-face{font-family:F;src:url("//fonts.example/f.woff2")} u{font-family:F}</style><u>u</u>':
        "third-party request: http://fonts.example/f.woff2",
    '<link rel="stylesheet" href="gone.css">': "gone.css (status 404)",
    '<script>console.error("spoiled")</script>': "console error: spoiled",
    '<script>throw new Error("thrown")</script>': "console error: uncaught: thrown",
    '<img src="none.svg?alt=missing">': "figure none.svg needs an alt text",
    '<img src="_static/favicon.svg" alt="a plot of the prices that we have seen so far">':
        "figure favicon.svg needs an alt text",
    '<img src="_static/file.png" alt="A line that falls from sixty dollars to six cents.">': "file.png is not SVG",
    '<img src="gone.svg" alt="A line that falls from sixty dollars to six cents.">': "picture gone.svg does not show",
    '<img width="100" src="small.svg" alt="Two words set much too small to be read by anybody.">':
        "figure small.svg has text of 5.0 px",
    '<p style="color:#ccc;background:#fff">pale</p>': "axe color-contrast",
    '<input type="text">': "axe label",
    '<p><span class="text_html">7</span></p>': "number '7' needs class num and one kind",
    '<p><span class="num">8</span></p>': "number '8' needs class num and one kind",
    '<p><span class="num measured quoted">9</span></p>': "number '9' needs class num and one kind",
    '<div class="too-wide" style="width:1500px">wide</div>': "because of div.too-wide",
}  # fmt: skip
WIDE = '<div class="wide" style="width:400px">wider than a phone, narrower than a desk</div>'
SMALL = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 100">'
    '<text y="50" style="font: 10px sans">words</text></svg>'
)


def spoiled(page: str, flaws: str) -> dict[str, str]:
    """The page with `flaws` at its end, and the pictures that they ask for."""
    whole = (SITE / page).read_text(encoding="utf-8")
    assert "</article>" in whole
    return {page: whole.replace("</article>", flaws + "</article>", 1), "small.svg": SMALL, "none.svg": SMALL}


@pytest.fixture(scope="module")
def faults(site, browser):
    with serve(site, spoiled(PAGE, "".join(FLAWS))) as base, new_context(browser, LIGHT) as context:
        return visit(context, base, PAGE)


@pytest.mark.parametrize("said", FLAWS.values())
def test_a_flaw_is_found(faults, said):
    assert any(said in fault for fault in faults), faults


def test_the_same_page_without_the_flaws_has_none_of_these_faults(site, browser):
    with serve(site, spoiled(PAGE, "")) as base, new_context(browser, LIGHT) as context:
        faults = visit(context, base, PAGE)
    assert not [fault for fault in faults if any(said in fault for said in FLAWS.values())]


@pytest.mark.parametrize(("look", "found"), [(LIGHT, False), (PHONE, True)], ids=["desk", "phone"])
def test_what_is_too_wide_for_a_phone_alone_is_found_there(site, browser, look, found):
    with serve(site, spoiled(PAGE, WIDE)) as base, new_context(browser, look) as context:
        assert any("because of div.wide" in fault for fault in visit(context, base, PAGE)) is found


@pytest.mark.parametrize(("formula", "script", "said"), [
    (r"\(\frac\)", "tex-chtml.js", "mathematics does not parse"),
    (r"\(\nosuchword\)", "tex-chtml.js", "mathematics does not parse"),
    (r"\(x\)", "gone.js", "mathematics is not typeset"),
], ids=["formula", "command", "no MathJax"])  # fmt: skip
def test_broken_mathematics_is_found(site, browser, formula, script, said):
    overlay = spoiled(MATHS, f'<span class="math">{formula}</span>')
    assert "tex-chtml.js" in overlay[MATHS]
    overlay[MATHS] = overlay[MATHS].replace("tex-chtml.js", script)
    with serve(site, overlay) as base, new_context(browser, LIGHT) as context:
        faults = visit(context, base, MATHS)
    assert any(said in fault for fault in faults), faults
