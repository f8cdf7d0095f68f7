"""What to do with imported masks: train on those of training images, and measure with the others."""

from collections.abc import Sequence

from jobs.run.directory import Run
from jobs.run.selection import measurable_splits
from jobs.steps.evaluation_state import evaluate_command


def next_commands(run: Run, splits: Sequence[str]) -> list[str]:
    """Lines with the commands that come next, which work as printed.

    Masks of validation splits are not trained on, so they still measure the network after the training.

    Args:
        splits: the splits of the imported masks.
    """
    strong = [split for split in splits if run.config.data.role_of(split) == "train"]
    to_measure = [split for split in splits if split not in strong]
    lines = []
    if strong:
        lines.append("  next:    " + ", then ".join(f"'{command}'" for command in _training_commands(run, strong)))
    if to_measure:
        command = evaluate_command(run, to_measure)
        lines.append(f"  measure: '{command}'. These masks are not trained on, so they measure every network.")
        return lines
    unseen = [group for group in measurable_splits(run.manifest(), run.config) if not {*group} & {*strong}]
    lines.append(
        f"  measure: '{evaluate_command(run, strong)}' now, before the training. After it, the network has seen these "
        "masks, and only masks of other images measure it"
        + (f": '{evaluate_command(run, unseen[0])}'." if unseen else ", such as those of validation images.")
    )
    return lines


def _training_commands(run: Run, strong: Sequence[str]) -> list[str]:
    """The commands that train on the masks of some splits, and predict again."""
    flags = ("--set", f"segmenter.strong_splits={','.join(strong)}", "--restart", "segmenter")
    train = run.command("train_segmentation", *flags)
    seeds = [] if run.step("seeds").fingerprint() else [run.step_command("seeds")]  # for images without a mask
    if run.step("maps").fingerprint():  # a run of the pipeline, which also measures and writes the report
        return [*seeds, train, run.command("run_pipeline", "--redo-outdated")]
    restart = ("--restart", "predictions") if run.step("predictions").fingerprint() else ()
    return [*seeds, train, run.step_command("predictions", *restart)]
