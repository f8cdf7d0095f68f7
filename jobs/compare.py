"""Compares runs: the settings in which they differ, and their metrics side by side.

Reads each run's run.json and evaluation/metrics.json. Use the metrics of the tune part to choose settings, and those of
the report part to compare runs. With --page it also reads labels, and writes a web page with pictures of the images
that changed most. The labels are compared at a small size (160 pixels at most), and a pixel that is unknown in only one
of the runs differs too. Settings of the section `cluster` change no result and are left out.
"""

from typing import TYPE_CHECKING

from jobs.cli.command_line import Parser, run_main, underscored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs.run.directory import Run

SHOWN = 25  # images in the page
COMPARED = 2000  # images, spread evenly over those that all runs have
EXAMPLES = """examples:
  python jobs/compare.py /data/voc_a /data/voc_b
  python jobs/compare.py s3://bucket/theta_30 s3://bucket/theta_35 s3://bucket/theta_40
  python jobs/compare.py /data/voc_a /data/voc_b --page /data/a_and_b.html
"""


def main(arguments: list[str]) -> None:
    parser = Parser(prog="compare", description=f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two runs or more: folders or s3:// prefixes")
    parser.add_argument("--page", metavar="FILE", help="write a web page with pictures of the images that changed most")
    parser.add_argument(
        "--labels",
        choices=("seeds", "pseudo_labels", "predictions"),
        type=underscored,
        help="with --page: which labels; default: the finest that all runs have finished and have made differently",
    )
    parser.add_argument("--images", type=int, metavar="N", help=f"with --page: images in the page ({SHOWN})")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    if len(given.runs) < 2:
        raise ValueError(f"compare: given only {given.runs[0]}. Give two runs or more.")
    for flag in ("images", "labels"):
        if getattr(given, flag) is not None and not given.page:
            raise ValueError(f"--{flag}: says what a page shows, so it needs --page FILE.")
    if given.images is not None and given.images < 1:
        raise ValueError(f"--images {given.images}: give the number of images in the page, 1 or more.")
    runs = [open_run(path) for path in given.runs]
    for run in runs:
        run.manifest()

    from cluster.words import plural
    from jobs.evaluation.metrics import aligned
    from jobs.reporting.comparison import different_settings, metrics_side_by_side, short_names
    from jobs.run.training_record import read_trainings
    from jobs.steps.evaluation_state import evaluation_state, read_metrics

    for uri in dict.fromkeys(run.uri for run in runs):
        if sum(run.uri == uri for run in runs) > 1:
            print(f"  WARNING: {uri} is given more than once, so these columns are the same run.\n")
    names = short_names(runs)
    settings, metrics = different_settings(runs), metrics_side_by_side(runs)
    print(aligned([["settings that differ", *names], *settings]) if settings else "  All settings are the same.")
    print()
    evaluations = [(run, evaluation_state(run, run.manifest(), read_trainings(run))) for run in runs]
    for run, evaluation in evaluations:
        if evaluation.state == "outdated":
            print(
                f"  WARNING: the figures of {run.uri} are outdated, because results or masks have changed since. "
                f"Measure again: {evaluation.command}\n"
            )
    unmeasured = [run for run in runs if not read_metrics(run)]
    if len(unmeasured) < len(runs) - 1:  # the metrics of one run alone compare nothing
        if metrics.different:
            print(aligned([["metrics that differ", *names], *metrics.different]))
        if metrics.same:
            count = plural(len(metrics.same), "metric")
            head = f"{count} {'is' if len(metrics.same) == 1 else 'are'} the same in all runs"
            print(("\n" if metrics.different else "") + aligned([[head, *names], *metrics.same]))
        for note in metrics.notes:
            print(f"  {note}")
    if unmeasured:
        print(_without_metrics(unmeasured, is_all=len(unmeasured) == len(runs), has_page=bool(given.page)))
    differ = len({run.manifest().column_hash(["image_id", "labels", "split", "mask_uri"]) for run in runs}) > 1
    if differ:
        print("\n  Their manifests differ, so metrics may be of different images.")
    if not given.page:
        return

    from jobs.reporting.changes import find_changes
    from jobs.reporting.compare_page import compare_page
    from jobs.run.directory import parse_output

    place = parse_output(given.page, "--page")
    changes = find_changes(runs, given.labels or "", most_compared=COMPARED, most_shown=given.images or SHOWN)
    page = compare_page(names, settings, metrics, changes, runs[0].manifest().class_names, manifests_differ=differ)
    place.write_bytes(page.encode())
    print()
    for sentence in changes.outdated:
        print(f"  WARNING: {sentence}")
    print(
        f"  {100 * changes.mean_share:.2g} % of the pixels differ on average, in the {changes.step} of "
        f"{changes.num_compared:,} images; the most changed ones are in {place}"
    )
    if changes.others:
        steps = " and ".join(changes.others)
        print(f"  The {steps} were also made differently; --labels {changes.others[0]} compares these.")


def _without_metrics(runs: "Sequence[Run]", *, is_all: bool, has_page: bool) -> str:
    """What to do about runs that have no metrics, which are all of the compared runs or some of them."""
    from jobs.run.selection import measurable_splits

    can_be_measured = [run for run in runs if measurable_splits(run.manifest(), run.config)]
    reason = f"'{can_be_measured[0].command('evaluate')}' makes them" if can_be_measured else "the images have no masks"
    page = "" if has_page else " To see the images whose labels differ most, give --page FILE."
    who = "None of these runs has" if is_all else f"{runs[0].uri} has no"
    return f"  {who} metrics: {reason}.{page if is_all else ''}"


if __name__ == "__main__":
    run_main(main)
