"""Draws a contact sheet of a run's maps: image, deterministic map, maximum, mean and truth, side by side.

An image has a row for each of its mapped classes. If none of the shown images has a mask, there is no column of truth.
"""

from jobs.cli.command_line import job_parser, run_main

EXAMPLES = """examples:
  python jobs/contact_sheet.py --run /data/voc
  python jobs/contact_sheet.py --run s3://bucket/voc --images 20
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("contact_sheet", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="images, spread over the mapped ones (8)")
    given = parser.parse_args(arguments)
    if given.images < 1:
        raise ValueError(f"--images {given.images}: give the number of images, 1 or more.")
    from jobs.run.directory import open_run  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)

    from cluster.words import plural
    from jobs.reporting.contact_sheet import SHEET, draw_contact_sheet, rows_with_maps
    from jobs.run.fingerprints import outdated_in_words
    from jobs.steps.dry_run import print_other_job

    if given.dry_run:
        num_mapped = len(rows_with_maps(run, run.manifest()))
        what = f"{min(given.images, num_mapped)} of {plural(num_mapped, 'mapped image')} on one picture"
        print_other_job("contact_sheet", what, run.location / SHEET)
        return
    print(f"contact sheet: {draw_contact_sheet(run, given.images)}")
    if outdated := outdated_in_words(run, "maps"):
        print(f"contact sheet: WARNING: {outdated}")


if __name__ == "__main__":
    run_main(main)
