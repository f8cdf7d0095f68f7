"""Writes the parts of the documentation that are made from the code: `make reference`.

docs/commands.md describes every job with its flags and examples. docs/configuration.md lists every key. docs/files.md
has a line for every file. docs/architecture.md has the table of steps.
"""

import argparse
import ast
import importlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

from jobs.cli.command_line import Parser
from jobs.cli.entry_point import COMMANDS
from jobs.run.config_keys import Config
from jobs.run.config_sentences import allowed_values
from jobs.run.steps import STEPS

DOCS = Path(__file__).parents[2] / "docs"

COMMANDS_HEAD = """# Commands

*Made from the code by `make reference`.*

Every job is a file in `jobs/` and also a command: `ficklenet maps ...` means `python jobs/generate_maps.py ...`. You
can stop any job, and the same command continues it. Only a preparation, an import, an evaluation and a report begin
again. If you misspell a command, a flag, a key, a class name or a split, the message suggests the nearest right one.

| exit code | meaning |
|---|---|
| 0 | done; some images may have been skipped, and the last line counts them |
| 1 | storage or cluster failed, for example because a disk is full; the same command continues |
| 2 | wrong input, also a missing bucket; nothing was started. One sentence says what is wrong and what to do |
| 130 | interrupted by Ctrl-C; the same command continues |
| 141 | the program that reads the output closed it, as `| head` does |
| 143 | stopped by SIGTERM (`ray job stop`, a batch system); the same command continues |

Messages are for people. Programs use `--json`, which some commands have, and the files of [a run](storage.md). On a
terminal, progress is a bar; elsewhere it is a line from time to time. With `--debug`, every job shows tracebacks
instead of sentences.
"""

CONFIGURATION_HEAD = """# Configuration

*Made from `jobs/run/config_keys.py` by `make reference`.*

A run has one configuration, recorded in its `run.json`. A launch can change it with a TOML file (`--config`) and with
single values (`--set maps.num_samples=100`), and records the result. Only the preparation records `cluster.address`:
each launch says itself where it works. Unknown keys and values that are not allowed are refused, with a suggestion. If
a finished step depends on a key, you cannot change this key for that step: use another run, or start the step over with
`--restart STEP`. Examples: [voc2012.toml](examples/voc2012.toml), [coco.toml](examples/coco.toml),
[own_data.toml](examples/own_data.toml), [own_data_small.toml](examples/own_data_small.toml).
"""


FILES_HEAD = """# Files

*Made from the code by `make reference`: the first sentence of every file.*

Which file to open for which change: [Architecture](architecture.md#where-to-change-what).
"""

STEPS_BEGIN, STEPS_END = "<!-- steps: made by `make reference` -->", "<!-- end of steps -->"


def job_parser_of(main: Callable[[list[str]], object]) -> Parser:
    """The parser that a job's `main` makes, before it parses anything."""
    captured: list[Parser] = []

    def capture(parser: Parser, *_: object) -> NoReturn:
        captured.append(parser)
        raise SystemExit

    with patch.object(Parser, "parse_args", capture), suppress(SystemExit):
        main([])
    return captured[0]


def commands_page() -> str:
    """docs/commands.md."""
    return "\n".join([COMMANDS_HEAD, *(_command_section(name, module) for name, module in COMMANDS.items())])


def _command_section(name: str, module_name: str) -> str:
    module = importlib.import_module(f"jobs.{module_name}")
    parser = job_parser_of(module.main)
    examples = module.EXAMPLES.strip().removeprefix("examples:\n").partition("\n\n")
    rows = [f"| `{_flag(action)}` | {_escaped(action.help or '')} |" for action in flags(parser)]
    return "\n".join(
        [
            f"## ficklenet {name}\n",
            f"`python jobs/{module_name}.py`\n",
            f"```text\n{(module.__doc__ or '').strip()}\n```\n",
            "| flag | meaning |\n|---|---|",
            *rows,
            "",
            "```bash\n" + "\n".join(line.removeprefix("  ") for line in examples[0].splitlines()) + "\n```\n",
            *([f"{examples[2].strip()}\n".replace("<", "&lt;")] if examples[2] else []),
        ]
    )


def flags(parser: Parser) -> list[argparse.Action]:
    """A job's own flags first, then those that most jobs share, without --help."""
    shared = ("--config", "--set", "--dry-run", "--debug")
    actions = [action for action in parser._actions if action.option_strings and action.dest != "help"]
    own = [action for action in actions if action.option_strings[0] not in shared]
    return own + [action for action in actions if action.option_strings[0] in shared]


def _flag(action: argparse.Action) -> str:
    choices = "|".join(map(str, action.choices or [action.dest.upper()]))
    value = "" if action.nargs == 0 else f" {action.metavar or choices}"
    return f"{action.option_strings[0]}{value}".replace("|", "\\|")


def configuration_page() -> str:
    """docs/configuration.md."""
    schema = Config.model_json_schema()
    sections = {name: each for name, each in schema["properties"].items() if "$ref" in each}
    plain = {name: each for name, each in schema["properties"].items() if name not in sections}
    pages = [CONFIGURATION_HEAD, _key_table(plain, "")]
    for name, each in sections.items():
        section = schema["$defs"][each["$ref"].rsplit("/", 1)[1]]
        pages.append(f"## {name}\n\n{_escaped(section['description'])}\n")
        pages.append(_key_table(section["properties"], f"{name}."))
    return "\n".join(pages)


def _key_table(properties: dict[str, dict[str, Any]], prefix: str) -> str:
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, each in properties.items():
        cells = [
            f"`{prefix}{name}`",
            f"`{_default(each['default'])}`",
            allowed_values(each),
            each.get("description", ""),
        ]
        rows.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "[]"
    return value if isinstance(value, str) and value else json.dumps(value)


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


def files_page() -> str:
    """docs/files.md."""
    root, parts = DOCS.parent, [FILES_HEAD]
    for package in ("ficklenet", "storage", "cluster", "jobs"):
        for folder in sorted({file.parent for file in (root / package).rglob("*.py")}):
            name = folder.relative_to(root).as_posix()
            parts.append(f"## {name}/\n\n{_first_sentence(folder / '__init__.py')}\n\n| file | what it is |\n|---|---|")
            files = [file for file in sorted(folder.glob("*.py")) if file.name != "__init__.py"]
            parts += [f"| `{file.name}` | {_escaped(_first_sentence(file))} |" for file in files]
            parts.append("")
    return "\n".join(parts)


def _first_sentence(file: Path) -> str:
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def architecture_page() -> str:
    """docs/architecture.md with the table of steps as it is in the code."""
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    before, _, rest = page.partition(STEPS_BEGIN)
    return f"{before}{STEPS_BEGIN}\n\n{_step_table()}\n\n{STEPS_END}{rest.partition(STEPS_END)[2]}"


def _step_table() -> str:
    rows = [
        "| step | script | `ficklenet` | kind | settings | may read | its module |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in STEPS:
        section, module = f"`{row.section}`" if row.section else "", f"`jobs/{row.module.replace('.', '/')}.py`"
        cells = [
            f"`{row.name}`",
            f"`{row.script}.py`",
            f"`{row.command}`",
            row.kind,
            section,
            ", ".join(row.upstream) or "the manifest",
            module if row.module else "`jobs/evaluation/measuring.py`",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


PAGES = {
    "commands.md": commands_page,
    "configuration.md": configuration_page,
    "files.md": files_page,
    "architecture.md": architecture_page,
}


def write_reference() -> None:
    """Writes all pages."""
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_reference()
