"""Makes one web page of a run: how far it is, its figures, and a gallery that shows where its maps are wrong.

Reads whatever the run has, writes <run>/report/index.html: a single file that needs no network and no server. The
gallery holds a sample of the images, spread evenly over those that have maps.
"""

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from cluster.words import plural
from jobs.command_line import job_parser, run_main
from jobs.dry_run import print_other_job
from jobs.figures import MEANINGS, SUMMARY
from jobs.parts import measurable_splits
from jobs.progress import duration
from jobs.report_curves import training_curves
from jobs.report_facts import (
    MATTERS,
    Setting,
    count_data,
    run_record,
    settings_of,
    skipped_images,
)
from jobs.report_figures import headline, measured_figures
from jobs.report_gallery import Gallery, error_first, finished_rows, make_gallery, mapped_images
from jobs.report_segmentation import Worst, comparisons, worst_predictions
from jobs.run import Run, open_run
from jobs.step_states import RunState, StepState, evaluate_command, run_state
from jobs.thumbnails import FALSE, MISSED, RIGHT, colour_of, colour_scale
from storage.location import Location
from storage.manifest import Manifest
from storage.steps import Step

NUM_IMAGES = 200  # a page of a few MB
NO_FIGURE = "\N{EN DASH}"
PAGE = "report/index.html"
PARTS = Path(__file__).parent  # of the page: report.html.j2, report.css, report.js

EXAMPLES = """examples:
  python jobs/report.py --run /data/voc
  python jobs/report.py --run s3://bucket/voc --images 1000
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("report", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument(
        "--images",
        type=int,
        default=NUM_IMAGES,
        metavar="N",
        help=f"images in the gallery, some 15 kB each ({NUM_IMAGES})",
    )
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    if given.dry_run:
        count = run.manifest().num_images
        print_other_job("report", f"a page of {plural(count, 'image')}, {given.images} shown", run.location / PAGE)
        return
    place, num_bytes = write_report(run, given.images)
    print(f"report: {place} ({num_bytes / 1e6:.1f} MB)")


def write_report(run: Run, num_images: int = NUM_IMAGES) -> tuple[Location, int]:
    """Makes the page of what the run has now; returns its place and size in bytes.

    Args:
        num_images: in the gallery, at most.

    Raises:
        ValueError: the run has no manifest yet, or `num_images` is negative.
    """
    if num_images < 0:
        raise ValueError(f"--images {num_images}: give the number of images in the gallery, 0 or more.")
    page = render(run, num_images).encode()
    place = run.location / PAGE
    place.write_bytes(page)
    return place, len(page)


def render(run: Run, num_images: int) -> str:
    """The page."""
    # 1. How far the run is
    manifest, settings = run.manifest(), settings_of(run)
    now = {setting.key: setting for setting in settings}
    state = run_state(run, manifest)
    steps = state.steps

    # 2. What came out, in figures and in pictures
    measured = measured_figures(run, settings, state)
    gallery = _gallery(run, manifest, steps, num_images, now)
    entries = error_first(gallery.pictures) if gallery else []
    worst = _worst(run, manifest, steps, num_images)
    pictures = [
        *(gallery.pictures if gallery else ()),
        *(example.picture for example in (worst.examples if worst else ())),
    ]

    # 3. The page
    script = (PARTS / "report.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            run_uri=run.uri,
            run_name=run.location.name or run.uri,
            record=run_record(run),
            manifest=manifest,
            counts=count_data(manifest),
            steps=steps,
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
            classes_shown=sorted({entry.class_number for _, entry in entries}),
            splits_shown=sorted({picture.split for picture, _ in entries}),
            skipped=skipped_images(steps.values()),
            outcome_colours={"right": RIGHT, "false": FALSE, "missed": MISSED},
            colour_scale=colour_scale(),
            style=Markup((PARTS / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )


def _gallery(
    run: Run, manifest: Manifest, steps: Mapping[str, StepState], number: int, now: dict[str, Setting]
) -> Gallery | None:
    """None as long as there are no maps."""
    without_labels = now["maps.classes"].value == "predicted"
    mapped = mapped_images(manifest, steps["maps"].receipts, without_labels=without_labels)
    if len(mapped) == 0:
        return None
    is_seeded = _is_seeded(manifest, steps)
    return make_gallery(run, manifest, mapped, is_seeded, number, theta=now["seeds.theta"].value)


def _worst(run: Run, manifest: Manifest, steps: Mapping[str, StepState], number: int) -> Worst | None:
    """None as long as there are no predictions of the network that the run has now."""
    predictions = steps["predictions"]
    if predictions.state == "outdated" or not predictions.receipts:
        return None
    splits = (Step(run.location / "predictions").fingerprint() or {})["predictions"]["splits"]
    skipped = {skip.image_id for skip in predictions.skipped}
    is_wanted = [
        split in splits and image_id not in skipped
        for batch in manifest.iter_columns(["image_id", "split"])
        for image_id, split in zip(batch["image_id"], batch["split"], strict=True)
    ]
    predicted = np.flatnonzero(finished_rows(predictions.receipts, manifest.num_images) & np.array(is_wanted, bool))
    return worst_predictions(run, manifest, predicted, _is_seeded(manifest, steps), number)


def _measuring_command(run: Run, manifest: Manifest) -> str:
    """What measures predictions: of the predicted splits those that can be measured together; "" where none can."""
    groups = measurable_splits(manifest, run.config)
    splits = next((found for group in groups if (found := [s for s in group if s in run.config.predicted_splits])), [])
    return evaluate_command(run, splits) if splits else ""


def _is_seeded(manifest: Manifest, steps: Mapping[str, StepState]) -> np.ndarray:
    """Bool (num_images,); seeds of other maps would be shown beside maps they do not belong to."""
    seeds = steps["seeds"]
    return finished_rows(() if seeds.state == "outdated" else seeds.receipts, manifest.num_images)


def _trainings(state: RunState) -> list[dict[str, Any]]:
    """The trainings that have been started, with their curves."""
    titles = {name: f"Training of the {name}" for name in ("classifier", "segmenter")}
    titles["retrained"] = "Retraining of the segmenter"
    return [
        {"title": titles[name], "metrics": training.metrics, "curves": training_curves(training.lines)}
        for name, training in state.trainings.items()
        if name in state.steps and state.steps[name].state != "not started"
    ]


def _environment() -> jinja2.Environment:
    """Everything a template is given is escaped: class names, ids and reasons come from other people's files."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PARTS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"colour_of": colour_of, "duration": duration, "figure": _figure, "setting": _setting}
    return environment


def _figure(value: float | None, digits: int = 3) -> str:
    return NO_FIGURE if value is None else f"{value:.{digits}f}"


def _setting(value: Any) -> str:
    if value is None or value in ("", [], ()):
        return "unset"
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


if __name__ == "__main__":
    run_main(main)
