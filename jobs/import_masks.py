"""Imports masks that were corrected in a labelling tool, so that the next training learns from them.

Reads what export_labels writes and labelling tools export: COCO's annotations (.json, also of FiftyOne), Label Studio's
"JSON" (.json), "CVAT for images 1.1" (.xml), or a folder of YOLO's polygons with their data.yaml, of Hugging Face's
Parquet files, or of PNGs with the data set's own class values. Writes <run>/corrected/<hash>/<id>.png and enters these
masks in the run's manifest. Masks that equal the run's own are left out, because tools also export images that nobody
opened. A mask that lacks only small objects, which an export can leave out, counts as equal.

Maps and seeds do not become outdated, and the segmentation network can be trained again with the new masks. With
--table the run does not change. Instead a table for a new run is written, in which the corrected images are the split
`corrected`.

A run that has only masks of new images (predict_masks.py --images) cannot be trained. For it, a table of its corrected
images is written, <run>/corrected/images.csv or --table, and the printed commands add them to the run with the network.
"""

from jobs.cli.command_line import job_parser, run_main

EXAMPLES = """examples:
  python jobs/import_masks.py --run /data/voc --masks annotations.xml
  python jobs/import_masks.py --run s3://bucket/voc --masks s3://bucket/corrected_pngs
  python jobs/import_masks.py --run /data/voc --masks annotations.json --table /data/corrected.csv
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("import_masks", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--masks", required=True, metavar="PLACE", help="a .json, a .xml, or a folder")
    parser.add_argument(
        "--empty-is-background",
        action="store_true",
        help="take images without any object as all background; they are left out otherwise",
    )
    parser.add_argument(
        "--keep-unchanged",
        action="store_true",
        help="take masks that equal the run's own too, because you looked at every mask, except of images that were "
        "corrected before; they are left out otherwise",
    )
    parser.add_argument("--table", metavar="FILE", help="write a table for a new run, and leave this one as it is")
    given = parser.parse_args(arguments)
    from jobs.run.directory import open_run, parse_output  # imports take a second, so --help does without

    run = open_run(given.run, given.config, given.set)
    run.manifest()  # refused before anything slow is imported

    from cluster.words import plural
    from jobs.exports.after_import import next_commands, training_on_new_images
    from jobs.exports.bring_back import SPLIT, put_into_run, read_corrections, write_masks, write_table
    from jobs.exports.other_classes import other_classes
    from jobs.exports.unchanged import without_unchanged
    from jobs.run.origin import origin_of
    from storage.location import Location

    place = Location.parse(given.masks)
    corrections = read_corrections(run, place, empty_is_background=given.empty_is_background)
    corrections = without_unchanged(run, corrections, place, keep=given.keep_unchanged)
    print(f"import: {plural(len(corrections.masks), 'mask')} of {place}")
    if note := other_classes(run, corrections):
        print(f"import: {note}")
    if corrections.empty:
        print(
            f"import: {plural(len(corrections.empty), 'image')} without any object left out (first: "
            f"{corrections.empty[0]}); --empty-is-background takes them as background."
        )
    if given.dry_run:
        print("import, dry run: nothing was started, nothing was written.")
        return
    places = write_masks(run, corrections)
    if given.table:
        table = parse_output(given.table, "--table")
        if origin_of(run):
            print(training_on_new_images(run, places, table))
            return
        flags = write_table(run, places, table)
        print(
            f"  next:    'python jobs/prepare_dataset.py --run NEW_RUN {flags} --set segmenter.strong_splits={SPLIT}'"
        )
        return
    splits = put_into_run(run, places)
    for line in next_commands(run, splits):
        print(line)


if __name__ == "__main__":
    run_main(main)
