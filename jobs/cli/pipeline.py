"""The pipeline: all steps of the table in order, then the metrics, a contact sheet and the report."""

from collections.abc import Collection, Sequence

from cluster.connect import Connection
from jobs.cli.launch import launch_step
from jobs.evaluation.comparison import better_labels
from jobs.evaluation.measuring import evaluate_labels
from jobs.predictions.predictions_job import units_to_predict
from jobs.reporting.contact_sheet import draw_contact_sheet
from jobs.reporting.page import write_report
from jobs.reporting.verdict import export_command
from jobs.run.directory import Run, setting_notes
from jobs.run.fingerprints import manifest_change, outdated_steps, with_settings
from jobs.run.selection import Resolution, measurable_splits, resolve_selection
from jobs.run.split_names import require_known_splits
from jobs.run.steps import pipeline_steps
from jobs.run.training_record import read_complete, read_trainings
from jobs.run.trial import is_trial
from jobs.steps.added_images import LENGTH, num_unseen, require_no_unseen
from jobs.steps.evaluation_state import outdated_figures, part_to_measure
from jobs.training.backbone_weights import fetch_imagenet_weights
from jobs.training.kept_network import will_change
from jobs.training.plan import planned_training, training_plan
from jobs.training.retrained_job import require_something_to_relabel
from jobs.training.segmenter_job import check_images, require_start_weights
from jobs.training.training_job import require_folder_without_ray, require_workers


def run_pipeline(run: Run, connection: Connection, *, redo_outdated: bool = False, retry_skipped: bool = False) -> None:
    """Runs every step, measures against the masks if there are any, and writes the report.

    Args:
        redo_outdated: start every outdated step again; otherwise outdated steps are refused.
        retry_skipped: try images again that earlier launches skipped. Trained networks stay.

    Raises:
        ValueError: the pipeline would stop at a step; the message says why and what to do.
    """
    require_possible(run)
    require_startable(run, redo_outdated=redo_outdated)
    for note in setting_notes(run, [row.name for row in pipeline_steps(run.config)]):
        print(note, flush=True)
    config, steps = run.config.segmenter, pipeline_steps(run.config)
    is_to_train = not read_complete(run.step("segmenter").data())
    if config.weights == "imagenet" and (connection.is_to_start or connection.in_process) and is_to_train:
        print(f"pipeline: downloading the ImageNet weights of {config.backbone}, unless they are cached.", flush=True)
        fetch_imagenet_weights(config.backbone, "segmenter.weights")  # a failed download ends it before the training
    for number, row in enumerate(steps, start=1):
        print(f"pipeline: step {number} of {len(steps)}, {row.title}", flush=True)
        is_to_restart = redo_outdated and row.name in outdated_steps(run)
        launch_step(run, connection, row.name, restart=is_to_restart, retry_skipped=retry_skipped)
    try:
        measure_and_report(run, connection)
    finally:
        print_outdated(run)


def measure_and_report(run: Run, connection: Connection) -> None:
    """Measures against the masks if there are any, draws a picture of the maps, and writes the report.

    Figures that were measured before and are outdated now are measured again at their resolutions.
    """
    manifest = run.manifest()
    measured = measurable_splits(manifest, run.config)
    if not measured:
        print("pipeline: no metrics, because none of the images to measure has a mask.")
    found = outdated_figures(run, manifest, read_trainings(run)) if measured else ()
    outdated = {each.selection: each for each in found}
    parts = {tuple(splits): part_to_measure(run, splits) for splits in measured}
    selected = [resolve_selection(manifest, run.config, list(splits), part) for splits, part in parts.items()]
    for selection in dict.fromkeys([*selected, *outdated]):
        again = outdated.get(selection)
        figures = evaluate_labels(
            run,
            connection,
            list(selection.splits),
            parts.get(selection.splits) if selection in selected else selection.part,
            _resolutions(again.resolutions if again else (), is_usual=selection in selected),
            deterministic=bool(again and again.deterministic),
        )
        if advice := better_labels(run, figures):
            print(f"pipeline: {advice}", flush=True)
    print(f"pipeline: a picture of the maps: {draw_contact_sheet(run, num_images=8)}")
    report = write_report(run)
    print(f"pipeline: look at {report.place}")
    if report.verdict:
        print(f"pipeline: {report.verdict.sentence} {report.verdict.advice}")
    if is_trial(run.config):
        return  # the verdict says not to use its masks
    export = export_command(run, report.figures)
    print(f"pipeline: masks for CVAT, and with another format for other programs: '{export}'")


def _resolutions(outdated: Sequence[Resolution], *, is_usual: bool) -> tuple[Resolution, ...]:
    """Those to measure: the image's for the usual images, and those at which outdated figures were measured."""
    every: tuple[Resolution, ...] = ("map", "image")
    return tuple(each for each in every if each in outdated or (is_usual and each == "image"))


def print_outdated(run: Run) -> None:
    """Prints a warning if steps are outdated, because another launch has started earlier steps again meanwhile."""
    found = outdated_steps(run)
    if outdated := [row.title for row in pipeline_steps(run.config) if row.name in found]:
        plain = Run(run.location, run.config)  # without this launch's settings, because the recorded ones apply
        command = plain.command("run_pipeline", "--redo-outdated")
        print(
            "pipeline: WARNING: these steps are outdated, because what they were made from was changed during this "
            f"launch: {', '.join(outdated)}. To compute them again: '{command}'.",
            flush=True,
        )


def require_possible(run: Run) -> None:
    """Refuses, before hours of training, a configuration that a later step would refuse.

    Raises:
        ValueError: a key names a split that no image has, there is nothing to predict, or nothing to train the
            segmentation network on or to start it from, or a training without Ray would need a local folder.
    """
    config = run.config
    trainings = [run.step(row.name) for row in pipeline_steps(config) if row.kind == "training"]
    to_train = [step for step in trainings if not read_complete(step.data())]
    if config.cluster.address == "in-process" and to_train:
        require_folder_without_ray(to_train[0].location)
    require_known_splits(config, run.manifest().splits())
    units_to_predict(run)
    if config.predictions.network == "retrained":
        require_something_to_relabel(config)
    require_workers(config.cluster, training_plan("segmenter", config, check_images(config, run.manifest())))
    if config.segmenter.weights != "classifier":  # the classifier is trained first
        require_start_weights(run, run.manifest())


def require_startable(run: Run, *, redo_outdated: bool) -> None:
    """Refuses outdated steps, unless they are to be redone, and settings that another step would refuse.

    Raises:
        ValueError: the message names all outdated steps, or the first other settings, and what to do.
    """
    if not redo_outdated:
        require_current(run)
    require_same_settings(run, but=steps_to_redo(run) if redo_outdated else ())


def require_same_settings(run: Run, but: Collection[str] = ()) -> None:
    """Refuses settings that a later step would refuse, because it was started with others.

    Args:
        but: the steps that are started again.

    Raises:
        ValueError: a step was started with other settings; the message names them and the command that changes them.
            Or the manifest was changed since. Or images were added since a training began, and it is not finished.
    """
    for row in pipeline_steps(run.config):
        recorded = run.step(row.name).fingerprint()
        if recorded is not None and row.name not in but:
            if change := manifest_change(run, row.name):  # not outdated, as a network from another run
                raise ValueError(
                    f"{run.step(row.name).location}: {change}. Put the manifest back from a copy, or start over with "
                    f"'{run.change_command(row.name, '--restart', row.name)}', which deletes this step's results."
                )
            asked = with_settings(recorded, row, run.config)
            if row.kind == "training":
                require_no_unseen(run, row.name)
                if not num_unseen(run, row.name):  # else it is finished, and its length stays
                    asked.pop(LENGTH, None)
                    asked |= planned_training(row.name, run.config, run.manifest()).fingerprint
            run.step(row.name).is_started_with(asked, run.change_command(row.name))


def steps_to_redo(run: Run) -> set[str]:
    """The outdated steps, and those that will be: this launch may keep another epoch's network of the classifier."""
    folder, keep = run.step("classifier").data(), run.config.classifier.keep
    return outdated_steps(run, ["classifier"] if will_change(folder, "classifier", keep) else [])


def require_current(run: Run) -> None:
    """Refuses to continue if steps were made from results that have changed since; the message names all such steps.

    Results that this launch will change count too.

    Raises:
        ValueError: such steps must be deleted and computed again.
    """
    found = steps_to_redo(run)
    outdated = [row for row in pipeline_steps(run.config) if row.name in found]
    if outdated:
        causes = {row.title: manifest_change(run, row.name) for row in outdated}
        named = [f"{title} ({cause})" if cause else title for title, cause in causes.items()]
        raise ValueError(
            f"these steps are outdated, because what they were made from has changed: {', '.join(named)}. The same "
            "command with --redo-outdated deletes their results and computes them again."
        )
