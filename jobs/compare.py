"""Compares runs: the settings in which they differ, and their metrics side by side.

Reads each run's run.json and evaluation/metrics.json; writes nothing. Use the metrics of the tune part to choose
settings, and those of the report part to compare runs.
"""

from jobs.cli.command_line import Parser, run_main

EXAMPLES = """examples:
  python jobs/compare.py /data/voc_a /data/voc_b
  python jobs/compare.py s3://bucket/theta_30 s3://bucket/theta_35 s3://bucket/theta_40
"""


def main(arguments: list[str]) -> None:
    parser = Parser(prog="compare", description=f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="two runs or more: folders or s3:// prefixes")
    parser.add_argument("--debug", action="store_true", help="show tracebacks and library logs")
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    if len(given.runs) < 2:
        raise ValueError(f"compare: given only {given.runs[0]}. Give two runs or more.")
    runs = [open_run(path) for path in given.runs]
    for run in runs:
        run.manifest()

    from jobs.evaluation.metrics import aligned
    from jobs.reporting.comparison import different_settings, metrics_side_by_side, short_names

    names = short_names(runs)
    settings, metrics = different_settings(runs), metrics_side_by_side(runs)
    print(aligned([["settings that differ", *names], *settings]) if settings else "  All settings are the same.")
    print()
    print(aligned([["metrics", *names], *metrics]) if metrics else "  None of these runs has metrics; see evaluate.py.")
    if len({run.manifest().column_hash(["image_id", "labels", "split", "mask_uri"]) for run in runs}) > 1:
        print("\n  Their manifests differ, so metrics may be of different images.")


if __name__ == "__main__":
    run_main(main)
