"""The documentation is true: pages that follow from the code do, commands parse, links resolve, the site builds."""

import ast
import json
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import matplotlib
import pytest

from ficklenet.threads import one_thread
from jobs.cli.entry_point import COMMANDS
from jobs.cli.reference import PAGES as PAGES_FROM_CODE
from jobs.cli.reference import flags, job_parser_of
from jobs.run.config import resolve_config
from jobs.run.config_keys import config_keys

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))
NOTEBOOK = ROOT / "docs" / "examples" / "one_image.ipynb"


def test_the_tests_of_every_kind_of_trouble_exist():
    rows = re.findall(r"^\| .+ \| (`\w+/test_.+) \|$", (ROOT / "docs/contributing.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        for file, tests in re.findall(r"`(\w+/test_\w+\.py)`: ([^;]+)", row):
            text = (ROOT / "tests" / file).read_text()
            missing = [name for name in re.findall(r"`(test_\w+)`", tests) if f"def {name}(" not in text]
            assert not missing, f"{file} has no {', '.join(missing)}"


# What follows from the code


@pytest.mark.parametrize("name", PAGES_FROM_CODE)
def test_pages_made_from_the_code_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text() == PAGES_FROM_CODE[name](), "run 'make reference'"


def test_every_job_flag_and_key_is_documented_with_a_meaning():
    commands = (ROOT / "docs" / "commands.md").read_text()
    for command, module in COMMANDS.items():
        section = commands.split(f"## ficklenet {command}\n")[1].split("\n## ")[0]
        for action in flags(job_parser_of(import_module(f"jobs.{module}").main)):
            assert action.help, f"{module} {action.option_strings[0]} has no help"
            assert f"`{action.option_strings[0]}" in section
    rows = (ROOT / "docs" / "configuration.md").read_text().splitlines()
    for key in config_keys():
        (row,) = [row for row in rows if row.startswith(f"| `{key}` |")]
        assert len(row.split("|")[-2].strip()) > 0, f"{key} has no description"


def test_every_file_says_what_it_is():
    rows = re.findall(r"^\| `(\w+\.py)` \| (.*) \|$", (ROOT / "docs" / "files.md").read_text(), re.M)
    files = [file for package in ("ficklenet", "storage", "cluster", "jobs") for file in (ROOT / package).rglob("*.py")]
    assert sorted(name for name, _ in rows) == sorted(file.name for file in files if file.name != "__init__.py")
    assert all(what.endswith(".") for _, what in rows), "end a docstring's first paragraph with a full stop"


def test_the_tree_has_a_line_for_every_folder():
    tree = (ROOT / "docs" / "architecture.md").read_text().split("## The tree")[1].split("```")[1]
    folders = {init.parent.relative_to(ROOT).as_posix() for init in (ROOT / "jobs").rglob("__init__.py")}
    for folder in ("ficklenet", "storage", "cluster", "tests", "docs", *folders):
        assert re.search(rf"^ *{folder}/ +\S", tree, re.M), folder


# Commands


def documented_commands() -> list[tuple[str, str, str]]:
    """(file, job, arguments) of every job's command in pages and examples."""
    found = []
    for page in [*PAGES, *EXAMPLES]:
        text = re.sub(r" \\\n#?\s*", " ", page.read_text())
        for name, arguments in re.findall(r"(?:python jobs/|ficklenet )([\w-]+)(?:\.py)?( (?:--|/|s3:)[^`\n]*)", text):
            found.append((page.name, COMMANDS.get(name, name), re.split(r"  | #|'|\(", arguments)[0]))
    return found


def test_documented_commands_have_only_flags_and_keys_that_exist(monkeypatch):
    monkeypatch.chdir(ROOT)  # --config docs/examples/...
    seen = documented_commands()
    assert len(seen) > 50 and {job for _, job, _ in seen} >= set(COMMANDS.values())
    parsers = {job: job_parser_of(import_module(f"jobs.{job}").main) for job in COMMANDS.values()}
    for page, job, arguments in seen:
        words = shlex.split(arguments)
        if "--help" in words:
            continue
        try:
            given = parsers[job].parse_args(words)
        except SystemExit:
            pytest.fail(f"{page}: {job}{arguments}: does not parse")
        if "config" in given:
            resolve_config({}, given.config, given.set)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_example_configurations_load_and_change_something(example):
    assert resolve_config({}, str(example), []) != resolve_config({}, None, [])


# Links and the site


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in headings(file), f"{page.name}: {target}: no such heading"


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    page = (tmp_path / "architecture" / "index.html").read_text()
    assert "test_imports.py</code>" in page and 'href="../../tests' not in page
    loaded = re.findall(r'<(?:script|img)[^>]*src="([^"]+)"|<link[^>]*rel="stylesheet"[^>]*href="([^"]+)"', page)
    assert loaded and not [each for pair in loaded for each in pair if "//" in each], "it fetches from elsewhere"


# The notebook


def notebook_cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


def test_the_notebook_runs_and_needs_the_method_alone():
    code = "\n".join(notebook_cells("code"))
    assert code.count("range(80)") == code.count("range(10)") == 1, "scenes and epochs, of which fewer are enough here"
    code = code.replace("range(80)", "range(20)").replace("range(10)", "range(1)")
    imported = {node.module for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)}
    assert imported and all(str(module).startswith("ficklenet.") for module in imported)
    matplotlib.use("Agg")
    space: dict[str, object] = {}
    with one_thread():  # which the notebook sets, and this restores
        exec(compile(code, NOTEBOOK.name, "exec"), space)
    assert space["difference"] < 1e-5  # type: ignore[operator]
    assert space["maps"].max_BSHW.min() >= 0  # type: ignore[attr-defined]
    sys.modules["matplotlib.pyplot"].close("all")
