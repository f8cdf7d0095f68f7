"""Makes localisation maps: N stochastic Grad-CAMs per image and class, reduced to their maximum and mean.

Reads <run>/manifest.parquet and <run>/classifier, writes <run>/maps. The same command continues an interrupted
run and computes exactly the missing units. Without --run it runs the built-in demo: it draws a data set, trains a small
classifier on it, and makes its maps and a picture of them.
"""

from jobs.cli.command_line import run_main
from jobs.cli.step_command import run_step, step_parser

EXAMPLES = """examples:
  python jobs/generate_maps.py                                      the demo
  python jobs/generate_maps.py --run /data/voc                      a prepared and trained run
  python jobs/generate_maps.py --run s3://bucket/voc --shard 1/4    every fourth unit of it
  ray job submit --working-dir . -- python jobs/generate_maps.py --run s3://bucket/voc
"""


def main(arguments: list[str]) -> None:
    parser = step_parser("maps", f"{__doc__}\n{EXAMPLES}", run_required=False)
    given = parser.parse_args(arguments)
    if given.run is not None:
        run_step("maps", given)
        return
    if given.restart or given.dry_run or given.retry_skipped or given.shard != "1/1":
        raise ValueError("give --run PATH; without it the demo runs, which allows only --config, --set and --debug.")

    from jobs.cli.demo import run_demo  # torch and Ray take seconds to import

    run_demo(given.config, given.set)


if __name__ == "__main__":
    run_main(main)
