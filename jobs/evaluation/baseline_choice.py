"""Chooses the baselines to measure: the best of each kind on the tune part."""

from cluster.connect import Connection
from cluster.words import plural
from ficklenet.metrics import label_metrics
from jobs.evaluation.baselines import Baseline, best_of_each_kind, candidates
from jobs.evaluation.counting import count, named, selected_units
from jobs.evaluation.unit_meter import Recipe
from jobs.run.directory import Run
from jobs.run.selection import Selection, num_masks, resolve_selection
from jobs.steps.finished import FinishedStep
from storage.units import Unit

MOST_TUNING_IMAGES = 500
"""Number of images on which the parameters are chosen; more would change them little and take minutes."""


def baseline_recipes(
    run: Run, connection: Connection, finished: dict[str, FinishedStep], selection: Selection, *, deterministic: bool
) -> list[Recipe]:
    """One baseline of each kind, with parameters chosen on the tune part of the training images."""
    (tuning, units), baselines = _tuning_units(run, selection), candidates(deterministic=deterministic)
    tried = [_recipe_of(run, baseline, name=f"{number}") for number, baseline in enumerate(baselines)]
    total = count(run, connection, finished, tuning, ("map",), tried, units)
    where = f"{plural(total.num_images, 'image')} of {named(tuning)}"
    if total.num_images == 0:
        print("evaluate: the baselines are left out, because no image to choose them on can be read.", flush=True)
        return []
    note = ""
    if tuning == selection and tuning.part != "tune":
        note = "; these are the measured images themselves, which favours the baselines"
    elif selection.part == "all" and set(tuning.splits) & set(selection.splits):
        note = "; some of them are measured too, which favours the baselines"
    print(f"evaluate: the baselines' parameters are chosen on {where}{note}.", flush=True)
    figures = [
        (recipe.baseline, label_metrics(total.matrices[recipe.name, "map"]).mean_iou)
        for recipe in tried
        if recipe.baseline
    ]
    return [_recipe_of(run, baseline, name=f"baseline: {baseline.kind}") for baseline in best_of_each_kind(figures)]


def _recipe_of(run: Run, baseline: Baseline, name: str) -> Recipe:
    source = "deterministic maps" if baseline.is_deterministic else "maps"
    return Recipe(name, source, baseline.settings(run.config), baseline=baseline)  # type: ignore[arg-type]


def _tuning_units(run: Run, selection: Selection) -> tuple[Selection, list[Unit]]:
    """The images on which parameters are chosen, and their units.

    They are the tune part of the training images, or the selected images if the tune part has no mask. If there are
    many units, some are taken at even distances.
    """
    manifest, size = run.manifest(), run.config.unit_size
    training = resolve_selection(manifest, run.config, [], "tune")
    chosen = training if training.splits and num_masks(manifest, training, enough=1) else selection
    units = selected_units(manifest, chosen, size)
    num_images = sum(unit.num_images for unit in units)
    return chosen, units[:: max(1, num_images // MOST_TUNING_IMAGES)]
