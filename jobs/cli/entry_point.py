"""The command `ficklenet`: short names for the jobs.

`ficklenet maps --run R` is `python jobs/generate_maps.py --run R`, with the same flags, messages and exit codes. Only
the name at the beginning of a message is the one that was typed.
"""

import ast
import difflib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import NoReturn

from jobs.cli.command_line import PROGRAM, run_main
from jobs.run.steps import STEPS

COMMANDS = {
    "prepare": "prepare_dataset",
    **{row.command: row.script for row in STEPS},
    "sheet": "contact_sheet",
    "export": "export_labels",
    "import": "import_masks",
    "report": "report",
    "compare": "compare",
    "status": "status",
    "verify": "verify",
    "run": "run_pipeline",
}


def main() -> NoReturn:
    """Runs the job that the first argument names."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if name in ("-h", "--help", "help"):
        run_main(lambda _: print(overview()), [])
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, [*COMMANDS, *COMMANDS.values()], n=1, cutoff=0.5)
        hint = f"Did you mean {_short(near[0])}?" if near else f"Commands: {', '.join(COMMANDS)}."
        what = f"{name}: unknown command. {hint}" if name else f"give a command. {hint}"
        print(f"ficklenet: {what} See ficklenet --help.", file=sys.stderr)
        sys.exit(2)
    module = COMMANDS[name]
    sys.argv[0] = f"{PROGRAM} {name}"  # the name at the beginning of the job's messages
    run_main(importlib.import_module(f"jobs.{module}").main, arguments)


def overview() -> str:
    """The text of `ficklenet --help`: every command with the first sentence of its job."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {first_sentence(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ficklenet COMMAND --run PATH [...]",
            "",
            "From images with image-level labels to localisation maps, seeds, masks and metrics, in this order:",
            "",
            *lines,
            "",
            "'ficklenet COMMAND --help' explains a command. You can stop any command; the same command continues it.",
            "'ficklenet run --demo' shows everything on drawn images.",
        ]
    )


def first_sentence(module: str) -> str:
    """The first sentence of a job's docstring, read without importing what the job needs."""
    spec = importlib.util.find_spec(f"jobs.{module}")
    assert spec is not None and spec.origin is not None
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    sentence = " ".join(docstring.split("\n\n")[0].split())
    return sentence.partition(". ")[0].rstrip(".") + "."


def _short(name: str) -> str:
    return next((short for short, module in COMMANDS.items() if module == name), name)


if __name__ == "__main__":
    main()
