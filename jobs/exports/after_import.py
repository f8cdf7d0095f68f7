"""What to do with imported masks: measure with them, and train on those of training images."""

import shlex
from collections.abc import Sequence

from cluster.words import listed
from jobs.exports.bring_back import SPLIT, write_addition
from jobs.run.corrected_masks import CORRECTED, is_corrected
from jobs.run.directory import Run, open_run
from jobs.run.origin import origin_of
from jobs.run.selection import measurable_splits
from jobs.steps.evaluation_state import evaluate_commands
from storage.location import Location

ADDITION = "images.csv"  # in the folder of corrected masks of a run of new images


def next_commands(run: Run, splits: Sequence[str]) -> list[str]:
    """Lines with the commands that come next, which work as printed: first to measure, then to train.

    Masks of validation splits are not trained on, so they still measure the network after the training. Masks of new
    images are added to the run that made the network, because only that run can be trained.

    Args:
        splits: the splits of the imported masks.
    """
    if origin_of(run):
        masks = ((number, row.mask_uri) for number, row in enumerate(run.manifest().iter_rows()))
        places = {number: Location(uri) for number, uri in masks if uri and is_corrected(run, uri)}
        return [
            f"  measure: '{evaluate_commands(run, [splits])}' now. A network that is trained on these masks later "
            "cannot be measured with them.",
            training_on_new_images(run, places, run.location / CORRECTED / ADDITION),
        ]
    of_role = {role: [s for s in splits if run.config.data.role_of(s) == role] for role in ("train", "val", "test")}
    strong, groups = of_role["train"], list(filter(None, of_role.values()))
    groups += [group for group in measurable_splits(run.manifest(), run.config) if not {*group} & {*splits}]
    measure = f"'{evaluate_commands(run, groups)}'"
    if strong:
        measure += " now, before the training. After it, the network has seen the masks of " + listed(strong)
        measure += ", and only masks of other images measure it."
    else:
        measure += f". The masks of {listed(splits)} are not trained on, so they measure every network."
    training = [f"  next:    {_in_order(_training_commands(run, strong))}"] if strong else []
    return [f"  measure: {measure}", *training]


def training_on_new_images(run: Run, places: dict[int, Location], table: Location) -> str:
    """Writes the table of corrected new images; a line with the commands that train the first run on them.

    Args:
        run: a run that has only masks of new images.
        places: the corrected masks, by the row of their image.
    """
    first = open_run(origin_of(run))
    is_there = (first.location / "manifest.parquet").exists()
    data = (first if is_there else run).config.data
    split = SPLIT if data.role_of(SPLIT) == "train" else next(iter(data.train_splits), SPLIT)
    flags = write_addition(run, places, table, split)
    if not is_there:
        return (
            f"  next:    the run that made these masks, {first.uri}, is not there any more. To train on them, add the "
            f"table to another run with these classes: 'python jobs/prepare_dataset.py --run OTHER_RUN {flags}'."
        )
    add = f"python jobs/prepare_dataset.py --run {shlex.quote(first.uri)} {flags}"
    compute = [first.command("run_pipeline")] if first.step("maps").fingerprint() else []  # for the added images
    commands = _in_order([add, *compute, *_training_commands(first, [split])])
    return f"  next:    to train on them, add their images to the run that made these masks: {commands}"


def _in_order(commands: Sequence[str]) -> str:
    return ", then ".join(f"'{command}'" for command in commands)


def _training_commands(run: Run, splits: Sequence[str]) -> list[str]:
    """The commands that train on the masks of some splits too, and predict again."""
    strong = ",".join(dict.fromkeys([*run.config.segmenter.strong_splits, *splits]))
    train = run.command("train_segmentation", "--set", f"segmenter.strong_splits={strong}", "--restart", "segmenter")
    seeds = [] if run.step("seeds").fingerprint() else [run.step_command("seeds")]  # for images without a mask
    if run.step("maps").fingerprint():  # a run of the pipeline, which also measures and writes the report
        return [*seeds, train, run.command("run_pipeline", "--redo-outdated")]
    restart = ("--restart", "predictions") if run.step("predictions").fingerprint() else ()
    return [*seeds, train, run.step_command("predictions", *restart)]
