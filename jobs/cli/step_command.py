"""The command line of a step: one parser and one `main` for all steps of the table."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobs.cli.command_line import Parser, job_parser, underscored
from jobs.run.steps import BY_NAME
from storage.units import parse_shard

if TYPE_CHECKING:
    from jobs.run.directory import Run


def step_parser(name: str, description: str, *, run_required: bool = True) -> Parser:
    """The flags of a step: those of every job, --restart, and for unit steps --shard and --retry-skipped."""
    row = BY_NAME[name]
    parser = job_parser(row.script, description, run_required=run_required)
    if row.kind == "units":
        parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th unit, starting at the I-th")
        parser.add_argument(
            "--retry-skipped", action="store_true", help="try images again that earlier launches skipped"
        )
    parser.add_argument(
        "--restart", choices=[name], type=underscored, help="delete this step's results and start it again"
    )
    return parser


def run_step(name: str, given: argparse.Namespace, assignments: Sequence[str] = ()) -> None:
    """Runs a step as its command line asks.

    Args:
        given: the arguments that `step_parser` parsed.
        assignments: further "key=value" settings, after those of --set.

    Raises:
        ValueError: the step refuses this launch.
    """
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    parse_shard(getattr(given, "shard", "1/1"))
    run = open_run(given.run, given.config, [*given.set, *assignments])
    run.manifest()  # refused before anything slow is imported
    launch_as_given(run, name, given)


def launch_as_given(run: "Run", name: str, given: argparse.Namespace) -> None:
    """Runs a step of a run as its command line asks.

    Raises:
        ValueError: the step refuses this launch.
    """
    shard = parse_shard(getattr(given, "shard", "1/1"))
    if given.restart and shard != (1, 1):
        raise ValueError(
            f"--restart {name} deletes the results of all shards. First launch it without --shard, then launch every "
            f"shard without --restart {name}."
        )

    from jobs.run.origin import require_all_steps
    from jobs.run.split_names import require_known_splits

    if name != "predictions":
        require_all_steps(run, BY_NAME[name].script)
    require_known_splits(run.config, run.manifest().splits(), [name])

    from jobs.cli.launch import launch_step  # torch and Ray take seconds to import
    from jobs.cli.launch_log import launch_log
    from jobs.run.directory import setting_notes
    from jobs.steps.compute import connected

    log = launch_log(run, BY_NAME[name].script, is_dry_run=given.dry_run)
    with log, connected(run) as connection:
        for note in setting_notes(run, [name]):
            print(note, flush=True)
        restart, retry_skipped = bool(given.restart), getattr(given, "retry_skipped", False)
        if given.dry_run:
            from jobs.cli.plans import plan_step

            plan_step(run, connection, name, shard, restart=restart, retry_skipped=retry_skipped)
        else:
            launch_step(run, connection, name, shard, restart=restart, retry_skipped=retry_skipped)
