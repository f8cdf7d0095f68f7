"""An evaluation: it chooses label maps and images, measures unit by unit, and prints the tables.

Each unit gives a few small confusion matrices (`jobs.evaluation.unit_meter`), which can be added in any order.
"""

from collections.abc import Mapping
from itertools import product

from cluster.connect import Connection
from cluster.words import plural
from ficklenet.backbones import backbone_geometry
from jobs.evaluation.baseline_choice import baseline_recipes
from jobs.evaluation.counting import count, named, selected_units
from jobs.evaluation.counts import Counts
from jobs.evaluation.metrics import (
    MeasuredLabels,
    class_table,
    skipped_in_words,
    store_metrics,
    summary_table,
)
from jobs.evaluation.unit_meter import MAPS_OF, Recipe
from jobs.evaluation.unseen import trained_masks_warning, unseen_splits
from jobs.run.config import resolve_config
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_in_words, reads_current_results, step_id, upstream_ids
from jobs.run.selection import FEW_MASKS, Part, Resolution, Selection, masks_id, resolve_selection
from jobs.run.trained_masks import splits_with_trained_masks
from jobs.steps.dry_run import print_other_job
from jobs.steps.finished import FinishedStep, require_finished
from jobs.steps.unit_dry_run import describe_connection
from storage.errors import NotYet
from storage.manifest import Manifest

SINGLE_CLASS_SHARE = 0.9  # of the measured images; from this share on, mIoU shows coverage

LABEL_STEPS = ("maps", "refined", "seeds", "pseudo_labels", "predictions")  # an evaluation reads one start of each


def evaluate_labels(
    run: Run,
    connection: Connection,
    splits: list[str],
    part: Part | None,
    resolutions: tuple[Resolution, ...],
    *,
    deterministic: bool,
    dry_run: bool = False,
) -> list[MeasuredLabels]:
    """Measures the labels that a run has, prints the metrics and stores them."""
    run = run.reading(*LABEL_STEPS)
    manifest, config = run.manifest(), run.config
    selection = resolve_selection(manifest, config, splits or unseen_splits(run, part), part)
    selected_units(manifest, selection, config.unit_size)  # without masks, no other step needs to run first
    if part is None and selection.part == "all" and not set(selection.splits) & set(config.data.val_splits):
        print(
            "evaluate: all images with masks are measured, because none of them is in the report part (three quarters "
            "of the training images; the others are for choosing settings). Do not choose settings with these masks.",
            flush=True,
        )
    finished: dict[str, FinishedStep] = {}
    recipes: list[Recipe] = []
    has_seeds = _has_seeds(run) or deterministic
    if has_seeds:
        needed = dict.fromkeys(("maps", config.seeds.maps, "seeds"))
        finished |= {name: require_finished(run, name, "evaluate") for name in needed}
        recipes += [
            Recipe("seeds", "stored seeds", config),
            Recipe("densified seeds", MAPS_OF[config.seeds.maps], config, densify=True),
        ]
    else:
        print("evaluate: the run has no seeds; only the other labels are measured.", flush=True)
    if run.step("pseudo_labels").fingerprint() is not None:
        try:
            finished["pseudo_labels"] = require_finished(run, "pseudo_labels", "evaluate")
            recipes.append(Recipe("pseudo-labels", "stored pseudo-labels", config))
        except NotYet:
            print("evaluate: the pseudo-labels are not complete; they are left out.", flush=True)
    if deterministic:
        recipes += [
            Recipe("deterministic seeds", "deterministic maps", config),
            Recipe("deterministic densified seeds", "deterministic maps", config, densify=True),
        ]
    recipes += _prediction_recipes(run, selection, finished)
    if not recipes:
        raise ValueError(
            f"evaluate: the predictions do not cover {named(selection)}, and there are no seeds. Give another --split, "
            f"or predict it: '{run.command('predict_masks', '--set', f'predictions.splits={selection.splits[0]}')}'."
        )
    if has_seeds and "map" in resolutions and not dry_run:
        recipes += baseline_recipes(run, connection, finished, selection, deterministic=deterministic)
    return _measure(run, connection, finished, selection, resolutions, recipes, dry_run)


def _has_seeds(run: Run) -> bool:
    """Whether maps and seeds are measured. A network that was trained on masks needs neither, so they may be absent."""
    return run.step("seeds").fingerprint() is not None or run.step("predictions").fingerprint() is None


def _prediction_recipes(run: Run, selection: Selection, finished: dict[str, FinishedStep]) -> list[Recipe]:
    """The recipes of the network's predictions, if the selected splits have some; adds the step to `finished`."""
    fingerprint = run.step("predictions").fingerprint()
    if fingerprint is None or not set(selection.splits) <= set(fingerprint["predictions"]["splits"]):
        return []
    if not reads_current_results(run, "predictions"):
        print("evaluate: the predictions were made by an earlier network; they are left out.", flush=True)
        return []
    try:
        finished["predictions"] = require_finished(run, "predictions", "evaluate", as_recorded=True)
    except NotYet:
        print("evaluate: the predictions are not complete; they are left out.", flush=True)
        return []
    if outdated := outdated_in_words(run, "predictions"):  # through the network, which made them
        print(f"evaluate: WARNING: {outdated}", flush=True)
    recipes = [Recipe("predictions", "stored predictions", run.config)]
    if fingerprint["predictions"]["refine"]:
        recipes.append(Recipe("predictions without CRF", "stored unrefined", run.config))
    return recipes


def sweep(
    run: Run,
    connection: Connection,
    assignments: list[str],
    splits: list[str],
    part: Part | None,
    *,
    deterministic: bool,
    dry_run: bool = False,
) -> list[MeasuredLabels]:
    """Measures labels that are made with other settings and not stored, on the tune part and at map resolution.

    Raises:
        ValueError: another part or a validation split is given, or a key that does not change label maps.
    """
    run = run.reading(*LABEL_STEPS)
    manifest = run.manifest()
    finished = {"maps": require_finished(run, "maps", "evaluate")}
    asked = resolve_selection(manifest, run.config, splits, part)
    if part in ("all", "report") or set(asked.splits) & set(run.config.data.val_splits):
        raise ValueError("--sweep: settings are chosen on the tune part of training splits only; leave --part out.")
    selection = Selection(asked.splits, "tune")
    recipes = []
    for chosen in product(*(_values(assignment) for assignment in assignments)):
        config = resolve_config(run.config.model_dump(), None, chosen)
        name = ", ".join(chosen)
        is_dense = all(text.startswith("pseudo_labels.") for text in chosen)
        kind = "densified seeds" if is_dense else "seeds"
        if (source := config.seeds.maps) not in finished:
            finished[source] = require_finished(run, source, "evaluate")
        recipes.append(Recipe(f"{kind}, {name}", MAPS_OF[source], config, densify=is_dense))
        if deterministic:
            recipes.append(Recipe(f"deterministic {kind}, {name}", "deterministic maps", config, densify=is_dense))
    print("sweep: reads masks of the tune part. Choose settings here and measure them on the report part.", flush=True)
    return _measure(run, connection, finished, selection, ("map",), recipes, dry_run)


def _measure(
    run: Run,
    connection: Connection,
    finished: Mapping[str, FinishedStep],
    selection: Selection,
    resolutions: tuple[Resolution, ...],
    recipes: list[Recipe],
    dry_run: bool,
) -> list[MeasuredLabels]:
    manifest = run.manifest()
    units = selected_units(manifest, selection, run.config.unit_size)
    if dry_run:
        kinds = plural(len(recipes), "kind")
        what = f"would measure {kinds} of labels on {named(selection)}, {plural(len(units), 'unit')}"
        where = describe_connection(run.config.cluster, connection)
        print_other_job("evaluate", what, run.location / "evaluation" / "metrics.json", where)
        return []

    # 1. Add up the small matrices of every unit
    masks = masks_id(manifest, selection)  # before: masks imported in the meantime make the figures outdated
    total = count(run, connection, finished, selection, resolutions, recipes, units)
    if total.num_images == 0:
        reasons = "; ".join(f"{number:,} {reason}" for reason, number in (+total.left_out).items())
        raise ValueError(f"evaluate: no image of {named(selection)} could be measured ({reasons}).")

    # 2. Print the tables and store the metrics
    measured = [
        _metrics(run, selection, masks, total, recipe, each)
        for each in resolutions
        for recipe in recipes
        if each in recipe.resolutions
    ]
    _print(measured, manifest, selection, total)
    if warning := trained_masks_warning(run, measured):
        print(f"evaluate: WARNING: {warning}", flush=True)
    store_metrics(run, measured, manifest.class_names)
    print(f"evaluate: metrics are in {run.location / 'evaluation' / 'metrics.json'}")
    return measured


def _metrics(
    run: Run, selection: Selection, masks: str, total: Counts, recipe: Recipe, resolution: Resolution
) -> MeasuredLabels:
    maps, segmenter_settings = run.step("maps").fingerprint() or {}, run.config.segmenter
    geometry = backbone_geometry(segmenter_settings.backbone, segmenter_settings.output_stride)
    side = geometry.grid_size(run.config.images.input_size)
    grid = run.maps().grid if maps else (side, side)
    settings = recipe.config.model_dump(mode="json", include={"seeds", "pseudo_labels"})
    if recipe.baseline is not None:  # its thresholds are not settings of the run
        settings = run.config.model_dump(mode="json", include={"seeds"})
    settings |= {"maps": maps["maps"]} if maps else {}
    segmenter, seen = None, set[str]()
    if recipe.source in ("stored predictions", "stored unrefined"):
        predictions = run.step("predictions").fingerprint() or {}
        settings["predictions"] = {k: value for k, value in predictions["predictions"].items() if k != "splits"}
        (segmenter,) = upstream_ids(predictions).values()
        seen = set(splits_with_trained_masks(run))
    return MeasuredLabels(
        labels=recipe.name,
        splits=selection.splits,
        part=selection.part,
        resolution=resolution,
        size=f"{grid[0]} x {grid[1]}" if resolution == "map" else "of each image",
        settings=settings,
        classifier=upstream_ids(maps).get("classifier"),
        segmenter=segmenter,
        masks=masks,
        num_images=total.num_images,
        left_out=dict(+total.left_out),
        num_foreign=total.num_foreign,
        skipped=dict(total.skipped[recipe.name]),
        matrix=total.matrices[recipe.name, resolution],
        num_several=total.num_several,
        matrix_several=total.several.get((recipe.name, resolution)),
        chosen=recipe.baseline.in_words if recipe.baseline else "",
        trained_on=tuple(split for split in selection.splits if split in seen),
        made_from=_made_from(run, recipe),
    )


def _made_from(run: Run, recipe: Recipe) -> dict[str, str | None]:
    """{name: id} of the step whose results a recipe measures; empty for predictions.

    Labels of a sweep are made from maps, without the run's seeds; all others belong to these.
    """
    if recipe.source in ("stored predictions", "stored unrefined"):
        return {}
    if recipe.source == "stored pseudo-labels":
        return {"pseudo_labels": step_id(run, "pseudo_labels")}
    is_of_seeds = "=" not in recipe.name and run.step("seeds").fingerprint() is not None
    name = "seeds" if is_of_seeds else recipe.config.seeds.maps
    return {name: step_id(run, name)}


def _print(measured: list[MeasuredLabels], manifest: Manifest, selection: Selection, total: Counts) -> None:
    left_out = "".join(f", {count:,} left out ({reason})" for reason, count in (+total.left_out).items())
    tune = "; the other images are the tune part, for choosing settings (--part all: both)"
    apart = tune if selection.part == "report" else ""
    print(f"evaluate: {named(selection)}: {plural(total.num_images, 'image')}{left_out}{apart}")
    if total.num_foreign:
        values = zip(manifest.class_names[:10], manifest.class_values, strict=False)
        known = ", ".join(f"{value} {name}" for name, value in values) + (", ..." if manifest.num_classes > 10 else "")
        print(
            f"evaluate: {plural(total.num_foreign, 'mask')} without a pixel of any of the image's classes (first: "
            f"{total.first_foreign!r}). The known values are 0 background, {known}; all others are ignored. "
            "To give other values a meaning, prepare the run again with --mask-values."
        )
    if total.num_images - total.num_several >= SINGLE_CLASS_SHARE * total.num_images:
        num_simple = total.num_images - total.num_several
        print(
            f"evaluate: WARNING: {num_simple:,} of {plural(total.num_images, 'image')} "
            f"{'has' if num_simple == 1 else 'have'} one class or none. On images with one class, these figures show "
            "how much of an object is covered, not whether the right object is found. If there are images with several "
            "classes, measure on them too."
        )
    if total.num_images < FEW_MASKS:
        print(f"evaluate: figures of fewer than about {FEW_MASKS} images say little.")
    for text in skipped_in_words((each.labels, each.skipped) for each in measured):
        print(f"evaluate: {text}.")
    for resolution in dict.fromkeys(each.resolution for each in measured):
        shown = [each for each in measured if each.resolution == resolution]
        size = f" ({shown[0].size})" if resolution == "map" else ""
        print(f"\nat {resolution} resolution{size}\n{summary_table(shown)}\n")
        own = [each for each in shown if not each.chosen and not each.labels.startswith("baseline")]
        if len(own) <= 5:
            print(f"{class_table(own, manifest.class_names)}\n")


def _values(assignment: str) -> list[str]:
    """Splits 'seeds.theta=0.2,0.5' into 'seeds.theta=0.2' and 'seeds.theta=0.5'; 'seeds.' may be left out."""
    key, equals, values = assignment.partition("=")
    key = key.strip() if "." in key else f"seeds.{key.strip()}"
    if not equals or not key.startswith(("seeds.", "pseudo_labels.")):
        raise ValueError(f"--sweep {assignment}: write a seeds.* or pseudo_labels.* key, such as seeds.theta=0.2,0.5.")
    return [f"{key}={value.strip()}" for value in values.split(",")]
