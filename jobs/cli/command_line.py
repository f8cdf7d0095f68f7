"""The command line that all jobs share: a few flags, one-sentence errors, exit codes.

Exit codes: 0 done; 1 storage or cluster failed; 2 wrong input; 130 interrupted; 141 the program that reads the output
closed it (`| head`); 143 stopped by SIGTERM.
"""

import argparse
import contextlib
import difflib
import errno
import io
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from cluster.allocator import keep_freed_memory
from cluster.errors import ClusterError
from jobs.cli.plain_output import PlainOutput
from jobs.steps.restarted import has_restarted
from storage.errors import NoBucket

QUIET_LIBRARIES = ("botocore", "aiobotocore", "boto3", "s3fs", "urllib3", "aiohttp")
"""Libraries that --debug leaves out, because their debug logs contain signatures and session tokens."""

STARTED = time.monotonic()  # of this process, about: this is the first module that a job imports

PROGRAM = "ficklenet"
"""The console command. A job that it starts calls itself `ficklenet maps` instead of `generate_maps`."""

_BEGIN_AGAIN = {"prepare_dataset", "import_masks", "evaluate", "report", "compare", "contact_sheet", "status"}
"""The scripts that store nothing before their end."""

LOG_NOTE = "log: "
"""The beginning of the note of an error that names the log of the launch. A worker's traceback is another note."""


class Stopped(KeyboardInterrupt):
    """SIGTERM, sent by `ray job stop`, a batch system or a preempted machine. It ends a job as Ctrl-C does.

    Attributes:
        has_come: whether this process got the signal. Ray's compiled code then raises a plain KeyboardInterrupt.
    """

    has_come: ClassVar[bool] = False


class Parser(argparse.ArgumentParser):
    """argparse that answers a wrong flag with one sentence and a suggestion."""

    def __init__(self, *, prog: str, **options: object) -> None:
        super().__init__(
            prog=sys.argv[0] if sys.argv[0].startswith(f"{PROGRAM} ") else prog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **options,  # type: ignore[arg-type]
        )

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        self._given = list(sys.argv[1:] if args is None else args)
        self._refuse_repeated()
        return super().parse_known_args(args, namespace)

    def _refuse_repeated(self) -> None:
        """Refuses a flag of one value that is given twice; argparse would ignore the first."""
        for action in self._actions:
            names = action.option_strings if isinstance(action, argparse._StoreAction) else ()
            if sum(word.partition("=")[0] in names for word in self._given) > 1:
                why = "a job works on one run" if names[0] == "--run" else "it has one value"
                self.error(f"{names[0]}: given twice, but {why}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            near = difflib.get_close_matches(str(value), list(action.choices), n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]}?" if near else ""
            given = next((word for word in map(_value_of, self._given) if underscored(word) == value), value)
            raise argparse.ArgumentError(action, f"given '{given}', allowed: {', '.join(action.choices)}.{hint}")

    def error(self, message: str) -> NoReturn:
        known = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        flags = [word.partition("=")[0] for word in self._given if word.startswith("--")]
        unknown = [flag for flag in flags if flag not in known] or message.split("unrecognized arguments: ")[1:]
        if unknown:  # argparse would first say that a required flag is missing, which is only misspelt
            flag = unknown[0].split()[0]
            near = difflib.get_close_matches(flag, known, n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]}?" if near else "See --help."
            if flag == "--restart":
                hint = (
                    "Each step's own command has it, such as 'aggregate_seeds.py --restart seeds'; then "
                    "'run_pipeline.py --redo-outdated' redoes the steps after it."
                )
            self.exit(2, f"{self.prog}: {flag}: unknown argument. {hint}\n")
        end = "" if message.endswith((".", "?")) else "."
        self.exit(2, f"{self.prog}: {message}{end} See --help.\n")


def job_parser(name: str, description: str, *, run_required: bool = True) -> Parser:
    """A parser with the flags that every job has."""
    parser = Parser(prog=name, description=description)
    parser.add_argument("--run", required=run_required, metavar="PATH", help="the run: a folder or an s3:// prefix")
    parser.add_argument("--config", metavar="FILE", help="TOML file that changes the run's recorded configuration")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one configuration key, for example maps.num_samples=100; may be repeated",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, where and for how long, but do not start it"
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    return parser


def _value_of(word: str) -> str:
    """The value in a word of a command line: that of --flag=value, or the word itself."""
    return word.partition("=")[2] if word.startswith("--") else word


def underscored(text: str) -> str:
    """The name of a step's folder, `pseudo_labels`, for a name that people may write `pseudo-labels`."""
    return text.replace("-", "_")


def run_main(main: Callable[[list[str]], None], arguments: list[str] | None = None) -> NoReturn:
    """Runs a job's main and ends the process with an exit code and, if the job failed, one sentence."""
    if arguments is None:
        _use_utf8()
    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=_plain(sys.stderr),
    )
    for library in QUIET_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for terminals that know only ASCII
    with contextlib.redirect_stdout(_plain(sys.stdout)), contextlib.redirect_stderr(_plain(sys.stderr)):
        _run(main, given, debug=debug)


def _plain(stream: Any) -> Any:
    """An output that escapes control characters; None stays, where the process has no output."""
    return None if stream is None else PlainOutput(stream)


def _run(main: Callable[[list[str]], None], given: list[str], *, debug: bool) -> NoReturn:
    try:
        _require_utf8(given)
        main(given)
        if sys.stdout is not None:
            sys.stdout.flush()  # here a closed output can be told apart from other errors
    except SystemExit as end:
        if end.code == signal.SIGTERM:  # by Ray's own handler, which replaces ours while a Ray starts
            _exit_interrupted(end, main, given, is_stopped=True)
        _exit(end.code if isinstance(end.code, int) else 0)  # argparse's
    except (KeyboardInterrupt, SystemError) as error:
        interruption = _interruption(error)
        if interruption is None:
            raise
        _exit_interrupted(error, main, given, is_stopped=Stopped.has_come or isinstance(interruption, Stopped))
    except (ValueError, OSError, ClusterError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            _exit(141)
        if debug:
            raise
        message, code = str(error), 2 if isinstance(error, ValueError | NoBucket) else 1
        if isinstance(error, FileNotFoundError) and error.filename:
            message, code = f"{error.filename}: no such file.", 2
        elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # the store has its own words
            place = f"{error.filename}: " if error.filename else ""
            message = f"{place}the disk or quota is full; free some space, then run the same command again."
        name, job = Path(sys.argv[0]).stem, main.__module__.rpartition(".")[2]
        print(f"{name}: {message.removeprefix(f'{name}: ').removeprefix(f'{job}: ')}", file=sys.stderr)
        for note in getattr(error, "__notes__", []):
            if note.startswith(LOG_NOTE):  # the log has the other notes
                print(f"{name}: {note}", file=sys.stderr)
        if code == 1 and _must_leave_out_restart(error, given):
            print(f"{name}: to continue, leave out --restart, which would delete the results again.", file=sys.stderr)
        _exit(code)
    _exit(0)


def _exit_interrupted(
    error: BaseException, main: Callable[[list[str]], None], given: list[str], *, is_stopped: bool
) -> NoReturn:
    word, code = ("stopped", 143) if is_stopped else ("interrupted", 130)
    same = "without --restart the same command" if _must_leave_out_restart(error, given) else "the same command"
    names = {Path(sys.argv[0]).stem, main.__module__.rpartition(".")[2]}
    does = "begins again" if names & _BEGIN_AGAIN else "continues"
    print(f"{word}; {same} {does}.", file=sys.stderr)
    _exit(code)


def _must_leave_out_restart(error: BaseException, given: list[str]) -> bool:
    """Whether the command deleted a step's results because of its flag, and would do so again."""
    return has_restarted(error) and any(each.startswith("--restart") for each in given)


def _use_utf8() -> None:
    """Starts this process again in Python's UTF-8 mode if the locale has only ASCII.

    Otherwise Python could not open files with other letters in their names. Python chooses this mode by itself, unless
    the environment forbids it.
    """
    if sys.getfilesystemencoding() == "ascii" and not sys.flags.utf8_mode:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})


def _require_utf8(arguments: list[str]) -> None:
    """Refuses a path that is not UTF-8 text, as from an old archive; Python writes its bytes as surrogates."""
    for argument in arguments:
        if not argument.isascii() and any("\udc80" <= letter <= "\udcff" for letter in argument):
            raise ValueError(
                f"{argument.encode('utf-8', 'backslashreplace').decode()}: contains bytes that are no UTF-8 letters. "
                "Rename the file or folder, then run the command with the new name."
            )


def _exit(code: int) -> NoReturn:
    """Ends the process; the exit code and the message are the same if the output is closed."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still wants to write
    sys.exit(code)


def _nobody_reads() -> bool:
    """Whether the program that reads the output has closed it, as `| head` does; then nothing more is printed."""
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError):  # there is no output, or it is not a file of the system
        return False
    poll = select.poll()
    poll.register(output, 0)  # errors, such as a pipe without a reader, are always reported
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """The interruption that `error` is or that caused it; compiled code wraps interruptions in a SystemError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not disturb the orderly end
    Stopped.has_come = True
    raise Stopped
