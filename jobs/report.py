"""Makes one web page of a run: its steps, its metrics, and a gallery that shows where its maps are wrong.

Reads all results that the run has. Writes <run>/report/index.html, a single file that needs no network and no server.
The gallery shows a sample of the images, spread evenly over those that have maps. <run>/report/review.csv lists all
images; those whose mask does not fit their maps come first.
"""

from jobs.cli.command_line import job_parser, run_main

NUM_IMAGES = 200  # a page of a few MB
EXAMPLES = """examples:
  python jobs/report.py --run /data/voc
  python jobs/report.py --run s3://bucket/voc --images 1000
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("report", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--images",
        type=int,
        default=NUM_IMAGES,
        metavar="N",
        help=f"images in the gallery, about 15 kB each ({NUM_IMAGES})",
    )
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)

    from cluster.words import plural
    from jobs.reporting.page import PAGE, write_report
    from jobs.steps.dry_run import print_other_job

    if given.dry_run:
        count = run.manifest().num_images
        print_other_job("report", f"a page of {plural(count, 'image')}, {given.images} shown", run.location / PAGE)
        return
    report = write_report(run, given.images)
    print(f"report: {report.place} ({report.num_bytes / 1e6:.1f} MB)")
    if report.verdict:
        print(f"report: {report.verdict.sentence} {report.verdict.advice}")
        if report.verdict.command:
            print(f"  command: '{report.verdict.command}'")


if __name__ == "__main__":
    run_main(main)
