"""Runs all steps of a prepared run in order, from labels to masks and metrics, with one configuration and one Ray.

A complete step is not computed again. The pipeline stops at the first step that cannot be completed and prints the
reason. The same command continues there. With --demo it draws a small data set first.
"""

from jobs.cli.command_line import job_parser, run_main

EXAMPLES = """examples:
  python jobs/run_pipeline.py --demo
  python jobs/run_pipeline.py --run /data/voc --dry-run
  python jobs/run_pipeline.py --run /data/voc --redo-outdated      after aggregate_seeds.py --restart seeds, for example
  python jobs/run_pipeline.py --run s3://bucket/voc --set classifier.weights=s3://bucket/vgg16.pt
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("run_pipeline", f"{__doc__}\n{EXAMPLES}", run_required=False)
    parser.add_argument("--demo", action="store_true", help="run on drawn scenes, in ~/ficklenet-demo")
    parser.add_argument(
        "--redo-outdated",
        action="store_true",
        help="delete the results of steps that were made from results that have changed since, and compute them again",
    )
    parser.add_argument("--retry-skipped", action="store_true", help="try images again that earlier launches skipped")
    given = parser.parse_args(arguments)
    if given.demo == (given.run is not None):
        raise ValueError("run_pipeline: give --run PATH of a prepared run, or --demo.")
    if given.demo and given.dry_run:
        raise ValueError("run_pipeline: --dry-run goes with --run; the demo's run is ~/ficklenet-demo/run.")

    from jobs.cli.launch_log import launch_log
    from jobs.cli.pipeline import run_pipeline  # torch and Ray take seconds to import
    from jobs.preparation.demo import prepare_demo
    from jobs.run.directory import open_run
    from jobs.run.origin import require_all_steps
    from jobs.steps.compute import connected

    run = prepare_demo(given.config, given.set) if given.demo else open_run(given.run, given.config, given.set)
    run.manifest()  # refused before a Ray is started
    require_all_steps(run, "run_pipeline")
    log = launch_log(run, "run_pipeline", is_dry_run=given.dry_run)
    with log, connected(run) as connection:
        if given.dry_run:
            from jobs.cli.plans import plan_pipeline

            plan_pipeline(run, connection, redo_outdated=given.redo_outdated, retry_skipped=given.retry_skipped)
        else:
            run_pipeline(run, connection, redo_outdated=given.redo_outdated, retry_skipped=given.retry_skipped)


if __name__ == "__main__":
    run_main(main)
