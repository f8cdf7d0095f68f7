"""The report as one web page: it collects the facts, metrics, curves and pictures, and fills the template."""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jobs.evaluation.metrics import MEANINGS, SUMMARY
from jobs.reporting.best_masks import (
    KINDS,
    is_on_trained_masks,
    measured_masks,
    unmeasured_images,
)
from jobs.reporting.curves import training_curves
from jobs.reporting.facts import (
    MATTERS,
    Setting,
    count_data,
    run_record,
    settings_of,
    skipped_images,
)
from jobs.reporting.gallery import TILES, error_first, labelled_rows, make_gallery, mapped_images
from jobs.reporting.lead import lead_pictures
from jobs.reporting.measured import headline, measured_metrics
from jobs.reporting.review import FILE, SHOWN, Doubt, review_list, trust_of, write_review
from jobs.reporting.segmentation import Worst, comparisons, worst_predictions
from jobs.reporting.templates import PARTS, environment, style
from jobs.reporting.thumbnails import DOUBT, FALSE, MISSED, RIGHT, colour_scale
from jobs.reporting.verdict import (
    GUIDE,
    Figures,
    Verdict,
    chance_of,
    judge,
)
from jobs.run.corrected_masks import all_corrected_from
from jobs.run.directory import Run
from jobs.run.origin import origin_of
from jobs.run.selection import measurable_splits
from jobs.run.trial import one_label_remedy
from jobs.steps.evaluation_state import evaluate_commands
from jobs.steps.states import RunState, StepState, run_state, steps_to_show
from storage.location import Location
from storage.manifest import Manifest

NUM_IMAGES = 200  # a page of a few MB
PAGE = "report/index.html"


@dataclass(frozen=True)
class Report:
    """A written page.

    Attributes:
        place: where it is.
        num_bytes: its size.
        verdict: whether to trust the run's masks; None if there is nothing to judge yet.
        figures: the figures that decided it.
    """

    place: Location
    num_bytes: int
    verdict: Verdict | None
    figures: Figures


def write_report(run: Run, num_images: int = NUM_IMAGES) -> Report:
    """Makes the page from the run's current results.

    Args:
        num_images: the most images in the gallery.

    Raises:
        ValueError: the run has no manifest yet, or `num_images` is negative.
    """
    if num_images < 0:
        raise ValueError(f"--images {num_images}: give the number of images in the gallery, 0 or more.")
    text, verdict, figures, doubts = _render(run, num_images)
    page = text.encode()
    place = run.location / PAGE
    if doubts:
        write_review(place.parent / FILE, doubts)
    place.write_bytes(page)
    return Report(place, len(page), verdict, figures)


def _render(run: Run, num_images: int) -> tuple[str, Verdict | None, Figures, list[Doubt]]:
    """The page, the verdict in it with its figures, and the images to look at first."""
    # 1. The state of the run
    manifest, settings = run.manifest(), settings_of(run)
    now = {setting.key: setting for setting in settings}
    state = run_state(run, manifest)
    steps, evaluation = state.steps, state.steps["evaluation"]

    # 2. The results, as numbers and pictures
    measured = measured_metrics(run, state)
    masks = measured_masks(measured)
    mapped, theta = _mapped(run, manifest, steps, now), now["seeds.theta"].value
    judged = KINDS[masks.best.labels] if masks else ""
    doubts = review_list(run, manifest, mapped, theta, judged) if len(mapped) else []
    doubtful = [doubt.row for doubt in doubts]
    gallery = make_gallery(run, manifest, steps, mapped, doubtful, num_images, theta=theta) if len(mapped) else None
    entries = error_first(gallery.pictures) if gallery else []
    worst = _worst(run, manifest, steps)
    # 3. What they mean together, with the pictures of the masks to use
    counts, trust, classifier = count_data(manifest), trust_of(doubts), state.trainings["classifier"].metrics
    chance = chance_of(run, classifier.get("validated"))
    one_label = ""
    if worst and len(worst.labels) == 1 and worst.num_compared > 1:
        one_label = ("background", *manifest.class_names)[min(worst.labels)]
    figures = Figures(
        mean_precision=classifier.get("val_map"),
        chance=chance,
        unrecognised=trust.unrecognised if trust else None,
        one_label=one_label,
        measured=masks,
        unmeasured=unmeasured_images(run, masks),
        is_on_trained_masks=is_on_trained_masks(measured),
        to_measure_again=_to_measure_again(run, steps) if evaluation.state == "outdated" else "",
        why_again=evaluation.note,
        has_masks=any(steps[name].receipts for name in ("seeds", "pseudo_labels", "predictions")),
        has_pseudo_labels=steps["pseudo_labels"].state == "done",
        corrected_from=all_corrected_from(run),
    )
    verdict = judge(run, figures)

    lead = lead_pictures(run, manifest, steps, mapped, theta, figures.proposed) if num_images else None
    pictures = [
        *(picture for picture, _ in (lead.pictures if lead else ())),
        *(gallery.pictures if gallery else ()),
        *(example.picture for example in (worst.examples if worst else ())),
    ]

    # 4. The page
    script = (PARTS / "report.js").read_text(encoding="utf-8")
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            run_uri=run.uri,
            run_name=run.location.name or run.uri,
            record=run_record(run),
            manifest=manifest,
            counts=counts,
            verdict=verdict,
            guide=GUIDE,
            one_label_remedy=one_label_remedy(run.config),
            chance=chance,
            steps=steps_to_show(run, state),
            classifier=state.trainings["classifier"],
            trainings=_trainings(state),
            settings=settings,
            headline_settings=[now[key] for key in MATTERS],
            measured=measured,
            headline=headline(measured),
            summary=SUMMARY,
            meanings=MEANINGS,
            comparisons=comparisons(measured),
            worst=worst,
            measuring_command=_measuring_command(run, manifest),
            pictures={picture.row: picture for picture in pictures}.values(),
            gallery=gallery,
            entries=entries,
            doubts=doubts[:SHOWN],
            num_reviewed=len(doubts),
            trust=trust,
            lead=lead,
            tiles=TILES,
            review_file=FILE,
            classes_shown=sorted({entry.class_number for _, entry in entries}),
            splits_shown=sorted({picture.split for picture, _ in entries}),
            skipped=skipped_images(steps.values()),
            outcome_colours={"right": RIGHT, "false": FALSE, "missed": MISSED},
            doubt_colour=DOUBT,
            colour_scale=colour_scale(),
            style=style(),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    return page, verdict, figures, doubts


def _mapped(run: Run, manifest: Manifest, steps: Mapping[str, StepState], now: dict[str, Setting]) -> np.ndarray:
    """The rows that have maps."""
    without_labels = now["maps.classes"].value == "predicted"
    return mapped_images(manifest, steps["maps"].receipts, without_labels=without_labels)


def _worst(run: Run, manifest: Manifest, steps: Mapping[str, StepState]) -> Worst | None:
    """The worst predictions; None if there are no predictions."""
    if not steps["predictions"].receipts:
        return None
    return worst_predictions(run, manifest, steps, labelled_rows(run, manifest, "predictions", steps["predictions"]))


def _measuring_command(run: Run, manifest: Manifest) -> str:
    """The commands that measure the predicted splits, in one line; "" if there are none."""
    measurable = measurable_splits(manifest, run.config)
    groups = [[split for split in group if split in run.config.predicted_splits] for group in measurable]
    return evaluate_commands(run, list(filter(None, groups)))


def _to_measure_again(run: Run, steps: Mapping[str, StepState]) -> str:
    """The command that measures outdated figures again; if steps are outdated too, these are computed first."""
    if not origin_of(run) and any(step.state == "outdated" for name, step in steps.items() if name != "evaluation"):
        return Run(run.location, run.config).command("run_pipeline", "--redo-outdated")  # with the recorded settings
    return steps["evaluation"].command


def _trainings(state: RunState) -> list[dict[str, Any]]:
    """The trainings that have been started, with their curves."""
    titles = {name: f"Training of the {name}" for name in ("classifier", "segmenter")}
    titles["retrained"] = "Retraining of the segmenter"
    return [
        {"title": titles[name], "metrics": training.metrics, "curves": training_curves(training.epochs)}
        for name, training in state.trainings.items()
        if name in state.steps and state.steps[name].state != "not started"
    ]
