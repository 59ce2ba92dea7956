"""MyST Markdown, as the chapters are written in, to the plain Markdown that every notebook front end shows."""

import posixpath
import re
from dataclasses import dataclass, field

from executed import BookError
from llmflation.claims import KINDS

ELSEWHERE = "(printed by the cell above)"

FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}|:{3,})(?:\{(?P<name>[^}\s]+)\})?[ \t]*(?P<arg>.*?)[ \t]*$")
INLINE = re.compile(
    r"\{(?P<role>[\w:-]+)\}(?P<tick>`+)(?P<body>.+?)(?P=tick)"
    r"|(?P<code>(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`))"
    r"|(?P<math>(?<!\\)\$\$.+?\$\$|(?<![\\$])\$(?!\s)[^$\n]+?(?<!\\)\$)"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)\s]+)\)",
    re.S,
)

BOXES = {"note", "tip", "hint", "warning", "caution", "danger", "error", "attention", "important", "seealso",
         "admonition", "epigraph", "pull-quote", "sidebar", "margin", "topic", "dropdown",
         "prf:theorem", "prf:definition", "prf:proof", "prf:example", "prf:algorithm"}  # fmt: skip
UNTITLED = {"admonition", "epigraph", "pull-quote", "sidebar", "margin", "topic", "dropdown"}  # have their own title
HOLDERS = {"grid", "card-carousel", "tab-set", "div", "container"}  # only arrange what they hold
CARDS = {"grid-item-card", "card", "tab-item", "grid-item"}
SILENT = {"bibliography", "contents", "tableofcontents", "toctree", "raw", "only", "index", "footbibliography"}


@dataclass(frozen=True)
class Lookup:
    """What a chapter refers to: where it is on the site, and what it is called there."""

    site: str  # address, ends with a slash
    repository: str  # address of the files, e.g. https://.../blob/main/
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)  # label -> (page#anchor, title)
    pages: dict[str, str] = field(default_factory=dict)  # page without suffix -> title
    numbers: dict[str, str] = field(default_factory=dict)  # label of a figure, table, equation -> "Fig. 1", "(1)"
    glued: dict[str, tuple[str, str]] = field(default_factory=dict)  # id -> (text, kind)
    citations: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # key -> (authors, year, address)

    def find(self, table: str, key: str):
        try:
            return getattr(self, table)[key]
        except KeyError:
            raise BookError(f"{key!r} is not among the {table} of the built book. Is it spelled right?") from None


class Translator:
    """Translates one chapter cell by cell; `solution` names the exercise whose solution is open, or is None."""

    def __init__(self, lookup: Lookup, folder: str = "chapters"):
        self.lookup, self.folder, self.solution = lookup, folder, None

    def cell(self, text: str) -> str:
        """The text of one Markdown cell. A solution that goes on in the next cells is closed in each of them."""
        done, inside = [], []
        for block in _blocks(text):
            name = block.name if isinstance(block, _Directive) else ""
            if name == "solution-start":
                self.solution, self.continued = _exercise_id(block.arg), False
                continue
            if name == "solution-end":
                done.append(self._folded_solution(inside))
                self.solution, inside = None, []
                continue
            (done if self.solution is None else inside).append(self._block(block))
        done.append(self._folded_solution(inside))
        return re.sub(r"\n{3,}", "\n\n", "\n\n".join(d.strip("\n") for d in done if d.strip()))

    def inline(self, text: str) -> str:
        """Roles and links of a piece of prose; code and math stay as they are."""
        return INLINE.sub(self._inline, text).replace(f"({ELSEWHERE})", ELSEWHERE)

    def _folded_solution(self, parts: list[str]) -> str:
        body = "\n\n".join(p for p in parts if p.strip())
        if not body:
            return ""
        title = f"Solution {self.solution}".strip() + (", continued" if self.continued else "")
        self.continued = True
        return _details(title, body)

    def _block(self, block) -> str:
        if isinstance(block, _Code):
            return block.text
        if isinstance(block, str):
            return self.inline(_without_targets(block))
        text = self._directive(block)
        return "\n".join(block.indent + line if line else "" for line in text.split("\n"))

    def _directive(self, d: "_Directive") -> str:
        name, title = d.name, self.inline(d.arg)
        if name in SILENT or name in ("exercise-end", "code-cell"):
            return ""
        if name == "math":
            return f"$$\n{d.body.strip()}\n$$"
        if name in ("code", "code-block"):
            return f"```{d.arg}\n{d.body}\n```"
        if name in ("exercise", "exercise-start"):
            number = _exercise_id(d.options.get("label", ""))
            title = title.removeprefix(number).strip()  # an author may have written the number as well
            head = " ".join(w for w in ("### Exercise", number) if w) + (f". {title}" if title else "")
            return f"{head}\n\n{self._body(d)}".strip()
        if name == "solution":
            return _details(f"Solution {_exercise_id(d.arg)}".strip(), self._body(d))
        if name in BOXES:
            title = title or ("" if name in UNTITLED else name.split(":")[-1].capitalize())
            if name == "dropdown" or "dropdown" in d.options.get("class", ""):
                return _details(title, self._body(d))
            return _quote(title, self._body(d))
        if name in HOLDERS:
            return self._body(d)
        if name in CARDS:
            return self._card(d, title)
        if name in ("figure", "image"):
            picture = self._link(d.options.get("alt", ""), d.arg, image=True)
            return f"{picture}\n\n{self._emphasized(self._body(d))}".strip()
        if name == "table":
            return f"{f'**{title}**' if title else ''}\n\n{self._body(d)}".strip()
        if name == "list-table":
            return f"{f'**{title}**' if title else ''}\n\n{_table(self._body(d))}".strip()
        raise BookError(f"the directive {name!r} has no plain form yet: add one in tools/plain_markdown.py.")

    def _body(self, d: "_Directive") -> str:
        inner = Translator(self.lookup, self.folder)
        return inner.cell(d.body)

    def _card(self, d: "_Directive", title: str) -> str:
        if link := d.options.get("link"):
            forms = {"doc": f"{link}.md", "ref": f"#{link}"}
            title = self._link(title, forms.get(d.options.get("link-type"), link))
        return "\n\n".join(p for p in (f"**{title}**" if title else "", self._body(d)) if p)

    @staticmethod
    def _emphasized(caption: str) -> str:
        return f"*{caption}*" if caption and "*" not in caption and "\n" not in caption else caption

    def _inline(self, m: re.Match) -> str:
        if m["role"]:
            return self._role(m["role"], m["body"].strip())
        if m["code"] or m["math"]:
            return m[0]
        return self._link(self.inline(m["text"]), m["target"], bool(m["image"]))

    def _role(self, role: str, body: str) -> str:
        named = re.fullmatch(r"(?P<text>.*?)\s*<(?P<target>[^<>]+)>", body, re.S)
        text, target = (named["text"], named["target"]) if named else ("", body)
        if role == "ref":
            page, title = self.lookup.find("labels", target.lower())
            return f"[{text or title}]({self.lookup.site}{page})"
        if role == "numref":
            page, _ = self.lookup.find("labels", target.lower())
            number = self.lookup.find("numbers", target)
            bare = number.split()[-1]
            text = text.replace("%s", bare).replace("{number}", bare) or number
            return f"[{text}]({self.lookup.site}{page})"
        if role == "eq":
            return self.lookup.find("numbers", f"equation-{target}")
        if role == "doc":
            return self._page_link(text, target)
        if role == "term":
            return text or target
        if role.startswith("cite"):
            return self._cite(role, body)
        if role in ("glue:", "glue", "glue:text"):
            number, kind = self.lookup.find("glued", body.split(":")[0])
            if kind == "measured":  # another machine, another number
                return ELSEWHERE
            return number.replace("$", r"\$") + f"<sup>{KINDS[kind]}</sup>"
        if role in ("math", "sub", "sup", "kbd"):
            return f"${body}$" if role == "math" else f"<{role}>{body}</{role}>"
        if role == "abbr":
            return body
        if role == "download":
            return self._link(text or target, target)
        raise BookError(f"the role {role!r} has no plain form yet: add one in tools/plain_markdown.py.")

    def _cite(self, role: str, body: str) -> str:
        found = []
        for key in body.split(","):
            authors, year, address = self.lookup.find("citations", key.strip())
            words = f"{authors} ({year})" if role.startswith("cite:t") else f"{authors}, {year}"
            found.append(f"[{words}]({address})" if address else words)
        return " and ".join(found) if role.startswith("cite:t") else f"({'; '.join(found)})"

    def _page_link(self, text: str, target: str, anchor: str = "") -> str:
        page = posixpath.normpath(posixpath.join("/" + self.folder, target)).lstrip("/")
        title = text or self.lookup.find("pages", page)
        return f"[{title}]({self.lookup.site}{page}.html{anchor})"

    def _link(self, text: str, target: str, image: bool = False) -> str:
        mark = "!" if image else ""
        if re.match(r"[a-z][a-z+.-]*:", target):
            return f"{mark}[{text}]({target})"
        if target.startswith("#"):
            page, title = self.lookup.find("labels", target[1:].lower())
            return f"[{text or title}]({self.lookup.site}{page})"
        path, sign, anchor = target.partition("#")
        if path.endswith((".md", ".ipynb")):
            return self._page_link(text, posixpath.splitext(path)[0], sign + anchor)
        path = posixpath.normpath(posixpath.join("/" + self.folder, path)).lstrip("/")
        return f"{mark}[{text}]({self.lookup.repository}{path}{'?raw=true' if image else ''})"


@dataclass(frozen=True)
class _Directive:
    name: str
    arg: str
    options: dict[str, str]
    body: str
    indent: str


@dataclass(frozen=True)
class _Code:
    """A code block that is only shown."""

    text: str


def _blocks(text: str):
    """The pieces of a cell in order: prose (str), _Code, _Directive."""
    lines, prose, i = text.split("\n"), [], 0
    while i < len(lines):
        opening = FENCE.match(lines[i])
        if not opening or (opening["fence"][0] == ":" and not opening["name"]):
            prose.append(lines[i])
            i += 1
            continue
        end = _closing(lines, i, opening["fence"])
        yield "\n".join(prose)
        prose = []
        if opening["name"]:
            yield _directive(opening, lines[i + 1:end])
        else:
            yield _Code("\n".join(lines[i:end + 1]))
        i = end + 1
    yield "\n".join(prose)


def _closing(lines: list[str], start: int, fence: str) -> int:
    for i in range(start + 1, len(lines)):
        line = lines[i].strip()
        if len(line) >= len(fence) and set(line) == {fence[0]}:
            return i
    raise BookError(f"{lines[start].strip()!r} is never closed.")


def _directive(opening: re.Match, lines: list[str]) -> _Directive:
    indent = opening["indent"]
    lines = [line.removeprefix(indent) for line in lines]
    options = {}
    while lines and (option := re.fullmatch(r":([\w-]+):\s*(.*?)\s*", lines[0])):
        options[option[1]] = option[2]
        lines = lines[1:]
    return _Directive(opening["name"], opening["arg"], options, "\n".join(lines).strip("\n"), indent)


def _without_targets(prose: str) -> str:
    """Prose without labels, comments and the labels of equations, which mean something to Sphinx alone."""
    prose = re.sub(r"^\([\w.:-]+\)=[ \t]*\n?", "", prose, flags=re.M)
    prose = re.sub(r"^%.*\n?", "", prose, flags=re.M)
    return re.sub(r"(\$\$)[ \t]*\([\w.:-]+\)[ \t]*$", r"\1", prose, flags=re.M)


def _exercise_id(label: str) -> str:
    """ex-01-2 -> 01-2"""
    return re.sub(r"^(ex|exercise|sol|solution)-", "", label.strip())


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _quote(title: str, body: str) -> str:
    text = f"**{title}**\n\n{body}" if title else body
    return "\n".join(f"> {line}" if line else ">" for line in text.split("\n"))


def _table(body: str) -> str:
    """A list of lists (`* - a`, `  - b`) to a table; the first row is the head."""
    rows: list[list[str]] = []
    for line in body.split("\n"):
        if cell := re.match(r"(\* | *)- ?(.*)", line):
            if cell[1].startswith("*"):
                rows.append([])
            rows[-1].append(cell[2])
        elif rows and line.strip():
            rows[-1][-1] += " " + line.strip()
    head, *others = rows
    return "\n".join("| " + " | ".join(r) + " |" for r in [head, ["---"] * len(head), *others])
