"""Every link inside the site leads to a page, a picture or a place on a page that exists."""

from links import dead_links, html_pages


def test_every_link_inside_the_site_leads_somewhere(site):
    assert not (dead := dead_links(site)), "\n".join(["dead links:", *dead])


def test_the_walk_sees_the_chapters(site):
    assert {"index.html", "chapters/01-llmflation.html", "search.html"} <= set(html_pages(site))


def test_dead_links_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(
        '<a href="sub/a.html#there">ok</a><a href="sub/a.html#gone">1</a><a href="gone.html">2</a>'
        '<img src="gone.svg"><a href="https://example.org/">ok</a><a href="#">ok</a><a href="#top">3</a>'
    )
    (tmp_path / "sub" / "a.html").write_text(
        '<h1 id="there"></h1><a href="../index.html">ok</a><a href="../../x">4</a>'
    )
    assert dead_links(tmp_path) == [
        "index.html: sub/a.html#gone (no such place on that page)",
        "index.html: gone.html (no such file)",
        "index.html: gone.svg (no such file)",
        "index.html: #top (no such place on that page)",
        "sub/a.html: ../../x (no such file)",
    ]
