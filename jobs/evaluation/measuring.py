"""An evaluation: which label maps are measured on which images, the fan-out over units, the tables.

A unit gives a few small confusion matrices (`jobs.evaluation.unit_meter`); they add up in any order.
"""

from collections.abc import Mapping
from functools import partial
from itertools import product

from cluster.connect import Connection
from cluster.fanout import Stages
from cluster.words import plural
from jobs.evaluation.metrics import MeasuredLabels, class_table, skipped_in_words, store_metrics, summary_table
from jobs.evaluation.unit_meter import MADE_BY, Counts, Measurement, Recipe, Resolution, UnitMeter
from jobs.run.config import resolve_config
from jobs.run.directory import Run
from jobs.run.fingerprints import outdated_steps, upstream_ids
from jobs.run.selection import Part, Selection, resolve_selection
from jobs.steps.compute import resolved_device, run_stages
from jobs.steps.dry_run import describe_connection, print_other_job
from jobs.steps.finished import FinishedStep, require_finished
from jobs.steps.progress import Progress
from storage.errors import NotYet
from storage.manifest import Manifest
from storage.steps import Receipt
from storage.units import Unit, units_with

LABEL_STEPS = ("maps", "seeds", "pseudo_labels", "predictions")  # what an evaluation reads, in one state each


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
    """Measures what a run has, prints it and keeps it."""
    run = run.reading(*LABEL_STEPS)
    manifest, config = run.manifest(), run.config
    finished = {name: require_finished(run, name, "evaluate") for name in ("maps", "seeds")}
    recipes = [Recipe("seeds", "stored seeds", config), Recipe("densified seeds", "maps", config, densify=True)]
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
    selection = resolve_selection(manifest, config, splits, part)
    recipes += _prediction_recipes(run, selection, finished)
    return _measure(run, connection, finished, selection, resolutions, recipes, dry_run)


def _prediction_recipes(run: Run, selection: Selection, finished: dict[str, FinishedStep]) -> list[Recipe]:
    """The network's predictions, where the run has them of the selected splits; adds them to `finished`."""
    fingerprint = run.step("predictions").fingerprint()
    if fingerprint is None or not set(selection.splits) <= set(fingerprint["predictions"]["splits"]):
        return []
    if "predictions" in outdated_steps(run):
        print("evaluate: the predictions are an earlier network's; they are left out.", flush=True)
        return []
    try:
        finished["predictions"] = require_finished(run, "predictions", "evaluate", as_recorded=True)
    except NotYet:
        print("evaluate: the predictions are not complete; they are left out.", flush=True)
        return []
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
    """Measures labels made on the spot by other settings, on the tune part, at map resolution.

    Raises:
        ValueError: another part or a validation split, or a key that no label map follows from.
    """
    run = run.reading(*LABEL_STEPS)
    manifest = run.manifest()
    finished = {"maps": require_finished(run, "maps", "evaluate")}
    asked = resolve_selection(manifest, run.config, splits, part)
    if asked.part == "all" or part == "report":
        raise ValueError("--sweep: settings are chosen on the tune part of training splits only; leave --part out.")
    selection = Selection(asked.splits, "tune")
    recipes = []
    for chosen in product(*(_values(assignment) for assignment in assignments)):
        config = resolve_config(run.config.model_dump(), None, chosen)
        name = ", ".join(chosen)
        is_dense = all(text.startswith("pseudo_labels.") for text in chosen)
        kind = "densified seeds" if is_dense else "seeds"
        recipes.append(Recipe(f"{kind}, {name}", "maps", config, densify=is_dense))
        if deterministic:
            recipes.append(Recipe(f"deterministic {kind}, {name}", "deterministic maps", config, densify=is_dense))
    print("sweep: reads the masks of the tune part; report what you choose on the report part.", flush=True)
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
    # 1. Map: every unit with a selected image gives a few small matrices
    manifest = run.manifest()
    needs_backbone = any(recipe.source == "deterministic maps" for recipe in recipes)
    device = resolved_device(run.config.maps.device, connection) if needs_backbone else "cpu"
    measurement = Measurement(run, selection, resolutions, tuple(recipes), device)
    units = _selected_units(manifest, selection, run.config.unit_size)
    if dry_run:
        what = f"{plural(len(recipes), 'kind')} of labels measured on {_named(selection)}, {plural(len(units), 'unit')}"
        where = describe_connection(run.config.cluster, connection)
        print_other_job("evaluate", what, run.location / "evaluation" / "metrics.json", where)
        return []
    names = {name for recipe in recipes for name in MADE_BY[recipe.source]}
    receipts = {name: finished[name].receipts if name in finished else run.step(name).receipts() for name in names}
    rows = [
        {"unit": unit, "skipped_by": {name: _reasons(receipts[name].get(unit.index)) for name in names}}
        for unit in units
    ]
    stages = Stages(partial(UnitMeter, measurement))
    total, progress = Counts(), Progress("evaluate", sum(unit.num_images for unit in units))

    # 2. Reduce: they add up, in any order
    for result in run_stages(rows, stages, run.config.cluster, connection, device):
        total.add(result["counts"])
        progress.advance(result["num_images"])
    progress.close()
    if total.num_images == 0:
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in (+total.left_out).items())
        raise ValueError(f"evaluate: no image of {_named(selection)} could be measured ({reasons}).")

    # 3. Tables and record
    measured = [_metrics(run, selection, total, recipe, each) for each in resolutions for recipe in recipes]
    _print(measured, manifest, selection, total)
    store_metrics(run, measured, manifest.class_names)
    print(f"evaluate: metrics are in {run.location / 'evaluation' / 'metrics.json'}")
    return measured


def _metrics(run: Run, selection: Selection, total: Counts, recipe: Recipe, resolution: Resolution) -> MeasuredLabels:
    maps, grid = run.step("maps").fingerprint() or {}, run.maps().grid
    settings = {"maps": maps["maps"]} | recipe.config.model_dump(mode="json", include={"seeds", "pseudo_labels"})
    segmenter = None
    if recipe.source in ("stored predictions", "stored unrefined"):
        predictions = run.step("predictions").fingerprint() or {}
        settings["predictions"] = {k: value for k, value in predictions["predictions"].items() if k != "splits"}
        (segmenter,) = upstream_ids(predictions).values()
    return MeasuredLabels(
        labels=recipe.name,
        splits=selection.splits,
        part=selection.part,
        resolution=resolution,
        size=f"{grid[0]} x {grid[1]}" if resolution == "map" else "of each image",
        settings=settings,
        classifier=upstream_ids(maps)["classifier"],
        segmenter=segmenter,
        num_images=total.num_images,
        left_out=dict(+total.left_out),
        num_foreign=total.num_foreign,
        skipped=dict(total.skipped[recipe.name]),
        matrix=total.matrices[recipe.name, resolution],
    )


def _print(measured: list[MeasuredLabels], manifest: Manifest, selection: Selection, total: Counts) -> None:
    left_out = "".join(f", {count:,} left out ({reason})" for reason, count in (+total.left_out).items())
    apart = {"report": "; the others are the tune part, for choosing settings", "tune": "", "all": ""}[selection.part]
    print(f"evaluate: {_named(selection)}: {plural(total.num_images, 'image')}{left_out}{apart}")
    if total.num_foreign:
        values = zip(manifest.class_names[:10], manifest.class_values, strict=False)
        known = ", ".join(f"{value} {name}" for name, value in values) + (", ..." if manifest.num_classes > 10 else "")
        print(
            f"evaluate: {plural(total.num_foreign, 'mask')} without a pixel of any of the image's classes (first: "
            f"{total.first_foreign!r}). Known are the values 0 background, {known}; others are ignored."
        )
    for text in skipped_in_words((each.labels, each.skipped) for each in measured):
        print(f"evaluate: {text}.")
    for resolution in dict.fromkeys(each.resolution for each in measured):
        shown = [each for each in measured if each.resolution == resolution]
        size = f" ({shown[0].size})" if resolution == "map" else ""
        print(f"\nat {resolution} resolution{size}\n{summary_table(shown)}\n")
        if len(shown) <= 5:
            print(f"{class_table(shown, manifest.class_names)}\n")


def _named(selection: Selection) -> str:
    part = "" if selection.part == "all" else f", {selection.part} part"
    return f"{', '.join(name or 'unnamed' for name in selection.splits)}{part}"


def _selected_units(manifest: Manifest, selection: Selection, unit_size: int) -> list[Unit]:
    """The units that hold a selected image.

    Raises:
        ValueError: no selected image has a mask.
    """
    is_selected, has_mask, others = [], False, set[str]()
    for batch in manifest.iter_columns(["image_id", "split", "mask_uri"]):
        for image_id, split, mask_uri in zip(*batch.values(), strict=True):
            is_selected.append(selection.includes(image_id, split))
            has_mask |= is_selected[-1] and bool(mask_uri)
            others |= {split} if mask_uri else set()
    if not has_mask:
        elsewhere = sorted(others - set(selection.splits))
        remedy = (
            f"Those of {', '.join(elsewhere)} have: --split {elsewhere[0]}."
            if elsewhere
            else "Others of these splits have: --part all."
            if others
            else "Prepare a run with masks (prepare_dataset --masks, or a column `mask` of the table)."
        )
        raise ValueError(f"evaluate: no image of {_named(selection)} has a mask. {remedy}")
    return units_with(is_selected, unit_size)


def _reasons(receipt: Receipt | None) -> dict[str, str]:
    """Why images of a unit were skipped, by id."""
    return {skip.image_id: skip.reason for skip in receipt.skipped} if receipt else {}


def _values(assignment: str) -> list[str]:
    """'seeds.theta=0.2,0.5' as 'seeds.theta=0.2', 'seeds.theta=0.5'; the section may be left out."""
    key, equals, values = assignment.partition("=")
    key = key.strip() if "." in key else f"seeds.{key.strip()}"
    if not equals or not key.startswith(("seeds.", "pseudo_labels.")):
        raise ValueError(f"--sweep {assignment}: write a seeds.* or pseudo_labels.* key, such as seeds.theta=0.2,0.5.")
    return [f"{key}={value.strip()}" for value in values.split(",")]
