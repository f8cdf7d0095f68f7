"""Measures seeds and predictions against masks: IoU per class, mIoU, precision, recall, coverage; printed and kept.

Reads <run>/maps, <run>/seeds, <run>/pseudo_labels and <run>/predictions where they are, and masks; writes
<run>/evaluation/metrics.json. Beside the stored seeds stand the densified ones, which label every pixel, and with
--deterministic the seeds of the deterministic maps, for which every image runs through the backbone again.

At map resolution the truth is taken at each cell's place; at image resolution seeds are enlarged by their nearest
neighbour, and densified seeds are made of enlarged maps. True label 255 is left out; an unlabelled pixel is a miss,
so all of an image that an earlier step had to skip is missed, and the output says so.
"""

from functools import partial
from itertools import product
from typing import get_args

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from cluster.words import plural
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, run_stages
from jobs.config import resolve_config
from jobs.dry_run import describe_connection, print_other_job
from jobs.figures import Figure, class_table, skipped_in_words, store_figures, summary_table
from jobs.finished_maps import FinishedMaps, require_labels, require_maps
from jobs.measure_labels import HELD_IN, Counts, Measurement, Recipe, Resolution, UnitMeter
from jobs.parts import Part, Selection, resolve_selection
from jobs.predict_masks import units_to_predict
from jobs.progress import Progress
from jobs.run import Run, open_run
from jobs.trained_segmenter import require_segmenter
from storage.manifest import Manifest
from storage.steps import Step
from storage.units import Unit, units_with

EXAMPLES = """examples:
  python jobs/evaluate.py --run s3://bucket/voc                             training images, report part
  python jobs/evaluate.py --run s3://bucket/voc --split val                 densified seeds beside the network's masks
  python jobs/evaluate.py --run s3://bucket/voc --deterministic --resolution map
  python jobs/evaluate.py --run s3://bucket/voc --sweep seeds.theta=0.2,0.35,0.5
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("evaluate", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--split", action="append", default=[], metavar="NAME", help="default: the training splits")
    parser.add_argument(
        "--part",
        choices=get_args(Part),
        help="of training splits: a quarter of the ids to tune thresholds on, the rest to report (default), or all",
    )
    parser.add_argument(
        "--resolution", choices=["map", "image", "both"], default="both", help="where labels meet truth; default: both"
    )
    parser.add_argument("--deterministic", action="store_true", help="beside them, labels of the deterministic maps")
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="try values of a seeds.* or pseudo_labels.* key, at map resolution; reads masks, of the tune part only",
    )
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    options = {"deterministic": given.deterministic, "dry_run": given.dry_run}
    require_maps(run, run.manifest(), "evaluate")  # before a Ray is started
    with connected(run.config.cluster) as connection:
        if given.sweep:
            sweep(run, connection, given.sweep, given.split, given.part, **options)
        else:
            resolutions = get_args(Resolution) if given.resolution == "both" else (given.resolution,)
            evaluate_seeds(run, connection, given.split, given.part, resolutions, **options)


def evaluate_seeds(
    run: Run,
    connection: Connection,
    splits: list[str],
    part: Part | None,
    resolutions: tuple[Resolution, ...],
    *,
    deterministic: bool,
    dry_run: bool = False,
) -> list[Figure]:
    """Measures what a run has, prints it and keeps it; the figures."""
    manifest, config = run.manifest(), run.config
    maps = require_maps(run, manifest, "evaluate")
    require_labels(run, manifest, maps, "seeds", "evaluate")
    recipes = [Recipe("seeds", "stored seeds", config), Recipe("densified seeds", "maps", config, densify=True)]
    pseudo_labels = Step(run.location / "pseudo_labels")
    if pseudo_labels.fingerprint() is not None:
        if pseudo_labels.missing_units(maps.units):
            print("evaluate: the pseudo-labels are not complete; they are left out.", flush=True)
        else:
            require_labels(run, manifest, maps, "pseudo_labels", "evaluate")
            recipes.append(Recipe("pseudo-labels", "stored pseudo-labels", config))
    if deterministic:
        recipes += [
            Recipe("deterministic seeds", "deterministic maps", config),
            Recipe("deterministic densified seeds", "deterministic maps", config, densify=True),
        ]
    selection = resolve_selection(manifest, config, splits, part)
    recipes += _prediction_recipes(run, manifest, selection)
    return _measure(run, connection, manifest, maps, selection, resolutions, recipes, dry_run)


def _prediction_recipes(run: Run, manifest: Manifest, selection: Selection) -> list[Recipe]:
    """The network's predictions, where the run has them of the selected splits."""
    step = Step(run.location / "predictions")
    fingerprint = step.fingerprint()
    if fingerprint is None or not set(selection.splits) <= set(fingerprint["predictions"]["splits"]):
        return []
    network = require_segmenter(
        run, manifest.class_names, "evaluate", fingerprint["predictions"].get("network", "segmenter")
    )
    is_current = fingerprint["segmenter"] == network.sha256
    if not is_current or step.missing_units(units_to_predict(run, manifest)):
        reason = "not complete" if is_current else "an earlier network's"
        print(f"evaluate: the predictions are {reason}; they are left out.", flush=True)
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
) -> list[Figure]:
    """Measures labels made on the spot by other settings, on the tune part, at map resolution.

    Raises:
        ValueError: another part or a validation split, or a key that no label map follows from.
    """
    manifest = run.manifest()
    maps = require_maps(run, manifest, "evaluate")
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
    return _measure(run, connection, manifest, maps, selection, ("map",), recipes, dry_run)


def _measure(
    run: Run,
    connection: Connection,
    manifest: Manifest,
    maps: FinishedMaps,
    selection: Selection,
    resolutions: tuple[Resolution, ...],
    recipes: list[Recipe],
    dry_run: bool,
) -> list[Figure]:
    # 1. Map: every unit with a selected image gives a few small matrices
    needs_backbone = any(recipe.source == "deterministic maps" for recipe in recipes)
    device = resolved_device(run.config.maps.device, connection) if needs_backbone else "cpu"
    measurement = Measurement(run.uri, run.config, selection, resolutions, tuple(recipes), device)
    units = _selected_units(manifest, selection, run.config.unit_size)
    if dry_run:
        what = f"{plural(len(recipes), 'kind')} of labels measured on {_named(selection)}, {plural(len(units), 'unit')}"
        where = describe_connection(run.config.cluster, connection)
        print_other_job("evaluate", what, run.location / "evaluation" / "metrics.json", where)
        return []
    skipped = {name: _skipped(run, name) for recipe in recipes for name in HELD_IN[recipe.source]}
    rows: list[Payload] = [
        {
            "unit": unit.index,
            "start": unit.start,
            "stop": unit.stop,
            "skipped": {name: by_unit.get(unit.index, {}) for name, by_unit in skipped.items()},
        }
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
    figures = [_figure(run, maps, selection, total, recipe, each) for each in resolutions for recipe in recipes]
    _print(figures, manifest, selection, total)
    store_figures(run, figures, manifest.class_names)
    print(f"evaluate: figures are in {run.location / 'evaluation' / 'metrics.json'}")
    return figures


def _figure(
    run: Run, maps: FinishedMaps, selection: Selection, total: Counts, recipe: Recipe, resolution: Resolution
) -> Figure:
    settings = {"maps": maps.fingerprint["maps"]} | recipe.config.model_dump(
        mode="json", include={"seeds", "pseudo_labels"}
    )
    segmenter = None
    if recipe.source in ("stored predictions", "stored unrefined"):
        made_by = Step(run.location / "predictions").fingerprint() or {"predictions": {}, "segmenter": None}
        settings["predictions"] = {name: value for name, value in made_by["predictions"].items() if name != "splits"}
        segmenter = made_by["segmenter"]
    return Figure(
        labels=recipe.name,
        splits=selection.splits,
        part=selection.part,
        resolution=resolution,
        size=f"{maps.grid[0]} x {maps.grid[1]}" if resolution == "map" else "of each image",
        settings=settings,
        classifier=maps.fingerprint["classifier"],
        segmenter=segmenter,
        num_images=total.num_images,
        left_out=dict(+total.left_out),
        num_foreign=total.num_foreign,
        skipped=dict(total.skipped[recipe.name]),
        matrix=total.matrices[recipe.name, resolution],
    )


def _print(figures: list[Figure], manifest: Manifest, selection: Selection, total: Counts) -> None:
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
    for text in skipped_in_words((figure.labels, figure.skipped) for figure in figures):
        print(f"evaluate: {text}.")
    for resolution in dict.fromkeys(figure.resolution for figure in figures):
        shown = [figure for figure in figures if figure.resolution == resolution]
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


def _skipped(run: Run, step: str) -> dict[int, dict[str, str]]:
    """The images that a step skipped, with the reason, by unit."""
    receipts = Step(run.location / step).receipts().values()
    return {receipt.unit: {skip.image_id: skip.reason for skip in receipt.skipped} for receipt in receipts}


def _values(assignment: str) -> list[str]:
    """'seeds.theta=0.2,0.5' as 'seeds.theta=0.2', 'seeds.theta=0.5'; the section may be left out."""
    key, equals, values = assignment.partition("=")
    key = key.strip() if "." in key else f"seeds.{key.strip()}"
    if not equals or not key.startswith(("seeds.", "pseudo_labels.")):
        raise ValueError(f"--sweep {assignment}: write a seeds.* or pseudo_labels.* key, such as seeds.theta=0.2,0.5.")
    return [f"{key}={value.strip()}" for value in values.split(",")]


if __name__ == "__main__":
    from jobs.evaluate import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
