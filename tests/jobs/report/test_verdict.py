"""The sentence at the top of the report: whether to trust the masks, and what to do next."""

from dataclasses import replace

import pytest

from ficklenet.metrics import chance_precision
from jobs import report
from jobs.reporting.measured import Measured
from jobs.reporting.verdict import (
    BestMasks,
    Figures,
    best_measured,
    chance_of,
    export_command,
    is_on_trained_masks,
    judge,
)
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.origin import write_origin
from storage.location import Location
from storage.manifest import ManifestRow, write_manifest

GOOD = {"has_masks": True, "mean_precision": 0.92, "chance": 0.2, "unrecognised": 0.02}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(Location(str(tmp_path)), Config())


@pytest.mark.parametrize(
    ("figures", "level", "words"),
    [
        ({"one_label": "background", "has_pseudo_labels": True}, "bad", "every pixel is background"),
        (
            {"mean_precision": 0.35},
            "bad",
            "has learnt little (validation mAP 0.35, random scores 0.20, good from 0.76)",
        ),
        ({"mean_precision": 0.6}, "careful", "the classifier is weak"),
        ({"unrecognised": 0.5}, "careful", "on 50% of the images, the classifier does not recognise"),
        (
            {"measured": BestMasks("predictions", 0.61, 162, ("val",))},
            "good",
            "the predictions have mIoU 0.61 on 162 images of val with masks",
        ),
        ({"measured": BestMasks("predictions", 0.3, 162, ("val",))}, "bad", "Correct these masks before you use them"),
        (
            {"measured": BestMasks("pseudo-labels", 0.53, 8, ("val",), "all", (("predictions", 0.37),))},
            "careful",
            "the pseudo-labels have mIoU 0.53 and the predictions have mIoU 0.37 on 8 images of val.",
        ),
        ({"to_measure_again": "evaluate"}, "careful", "is outdated: masks were added or changed since"),
        (
            {"measured": BestMasks("predictions", 0.997, 29, ("val",))},
            "careful",
            "so these masks are probably the run's own",
        ),
        ({}, "careful", "No figure speaks against these masks"),
        ({"is_on_trained_masks": True}, "careful", "measured only on masks that it was trained on"),
        ({"mean_precision": None, "unrecognised": None}, "careful", "No figures judge these masks"),
    ],
)
def test_the_figures_of_a_run_become_one_sentence_and_a_next_step(run, figures, level, words):
    verdict = judge(run, Figures(**(GOOD | figures)))
    assert verdict is not None
    assert (verdict.level, words in verdict.sentence) == (level, True)
    assert verdict.advice


def test_masks_that_were_measured_count_more_than_the_classifier(run):
    verdict = judge(
        run, Figures(**(GOOD | {"mean_precision": 0.3, "measured": BestMasks("pseudo-labels", 0.7, 50, ("val",))}))
    )
    assert verdict is not None and verdict.level == "good"


def test_a_trial_says_that_it_is_one(run):
    trial = Run(run.location, Config.model_validate({"segmenter": {"backbone": "small"}}))
    verdict = judge(trial, Figures(**GOOD))
    assert verdict is not None
    assert "this run is a trial" in verdict.sentence and "docs/examples/own_data.toml" in verdict.advice


def test_the_proposed_export_has_no_specks(run):
    verdict = judge(run, Figures(**GOOD))
    assert verdict is not None and verdict.command.endswith("--format cvat --min-object-pixels 100")


@pytest.mark.parametrize(
    "measured", [None, BestMasks("predictions", 0.3, 50, ("val",)), BestMasks("predictions", 0.99, 50, ("val",))]
)
def test_a_run_of_new_images_names_the_page_about_its_masks(run, measured):
    own, new = "docs/tutorial-cvat.md", "docs/howto-new-images.md"
    assert own in judge(run, Figures(**GOOD, measured=measured)).advice
    write_origin(run, run, "segmenter", "0" * 64, "/data/october")
    advice = judge(run, Figures(**GOOD, measured=measured)).advice
    assert new in advice and own not in advice and "Look at these first" not in advice


def test_a_run_without_masks_has_no_verdict(run):
    assert judge(run, Figures()) is None
    assert judge(run, Figures(mean_precision=0.3, chance=0.2)) is None


def test_chance_is_computed_on_the_validated_images(run):
    labels = [(0,), (0, 1), (0,), (1,), (), ()]
    rows = [ManifestRow(f"val {place}", f"{place}.png", each, split="val") for place, each in enumerate(labels)]
    rows[4], rows[5] = replace(rows[4], negative=True), replace(rows[0], image_id="bad", problem="empty file")
    training = [ManifestRow(f"train {place}", f"t{place}.png", (1,), split="train") for place in range(9)]
    added = [ManifestRow("added", "added.png", (2,), split="val")]
    write_manifest(run.location / "manifest.parquet", [*rows, *training, *added], "abc", additions=[15])

    assert chance_of(run, 5) is None  # there is no record of a training
    run.step("classifier").open({"data": {"val_splits": ["val"]}}, "")
    assert chance_of(run, 5) == pytest.approx((chance_precision(3, 5) + chance_precision(2, 5)) / 2)
    assert chance_of(run, None) is None
    run.step("classifier").open({"data": {"val_splits": ["val"]}, "added": ["0"]}, "")
    assert chance_of(run, 6) == pytest.approx(sum(chance_precision(count, 6) for count in (3, 2, 1)) / 3)


def test_the_best_masks_of_the_largest_group_count():
    def group(num_images: int, part: str = "all", **figures: float) -> Measured:
        metrics = tuple({"labels": name.replace("_", "-"), "mean_iou": value} for name, value in figures.items())
        return Measured(("train",), part, "image", "", num_images, {}, 0, (), metrics, ("",) * len(metrics))

    groups = [
        group(3, predictions=0.9),
        group(30, pseudo_labels=0.6, predictions=0.5),
        group(90, "tune", predictions=1),
    ]
    assert best_measured(groups) == BestMasks("pseudo-labels", 0.6, 30, ("train",), others=(("predictions", 0.5),))
    assert best_measured([]) is None


@pytest.mark.parametrize(
    ("splits", "part", "words"),
    [
        (("val",), "all", "1,200 images of val"),
        (("train", ""), "report", "1,200 images of the report part of train and no split"),
        (("",), "all", "1,200 images"),
    ],
)
def test_the_measured_images_are_named_by_their_splits(splits, part, words):
    assert BestMasks("predictions", 0.5, 1200, splits, part).images == words


def test_a_network_s_figures_on_masks_of_its_training_decide_nothing():
    figures = {"mean_iou": 0.9, "splits": ["train"]}
    seen = {"labels": "predictions", "trained_on": ["train"]} | figures
    measured = Measured(("train",), "all", "image", "", 30, {}, 0, (), (seen,), ("",))
    assert best_measured([measured]) is None and is_on_trained_masks([measured])
    other = replace(measured, metrics=(seen, {"labels": "pseudo-labels", "trained_on": []} | figures), notes=("", ""))
    assert best_measured([other]) == BestMasks("pseudo-labels", 0.9, 30, ("train",))
    assert not is_on_trained_masks([replace(measured, notes=("an earlier network",))])


def test_the_pipeline_offers_masks_that_have_objects(run):
    assert export_command(run, "background").endswith("--format cvat --labels pseudo_labels --min-object-pixels 100")
    assert export_command(run, "").endswith("--format cvat --min-object-pixels 100")


def test_page_and_command_say_the_verdict(predicted_run, capsys, html_of):
    report.main(["--run", predicted_run.uri])
    sentence = "Do not use these masks: this run is a trial with the tiny network"
    assert sentence in capsys.readouterr().out
    page = html_of(predicted_run)
    assert page.index(sentence) < page.index('id="overview"')
    assert "random scores have 0." in page
