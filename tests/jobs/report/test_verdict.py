"""The sentence at the top of the report: whether to trust the masks, and what to do next."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cluster.connect import connect
from ficklenet.metrics import chance_precision, label_metrics
from jobs import report
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels, sweep
from jobs.reporting.best_masks import (
    Group,
    Kind,
    MeasuredMasks,
    Unmeasured,
    is_on_trained_masks,
    measured_masks,
    unmeasured_images,
)
from jobs.reporting.measured import Measured
from jobs.reporting.page import write_report
from jobs.reporting.verdict import Figures, chance_of, export_command, judge
from jobs.run.config_keys import Config
from jobs.run.directory import Run, open_run
from jobs.run.origin import write_origin
from jobs.steps.evaluation_state import RESULTS_CHANGED, read_metrics
from storage.location import Location
from storage.manifest import ManifestRow, write_manifest
from storage.records import seal

GOOD = {"has_masks": True, "mean_precision": 0.92, "chance": 0.2, "unrecognised": 0.02}
BETTER = "The pseudo-labels are better than the predictions on the same images."
USE = "Use the pseudo-labels: they are better than the predictions on the same images."
START_FROM = USE.replace("Use", "Start corrections from")
SPOT = "baseline: centred Gaussian"


def masks(mean_iou: float, *num_images: int, labels: str = "predictions") -> MeasuredMasks:
    """Masks that were measured on images of val, or on images of train and of val."""
    splits = ("train", "val")[-len(num_images) :]
    groups = [Group(mean_iou, number, (split,)) for number, split in zip(num_images, splits, strict=True)]
    return MeasuredMasks(Kind(labels, mean_iou, tuple(groups)))


def better_pseudo_labels(*num_images: int) -> MeasuredMasks:
    best, other = masks(0.53, *num_images, labels="pseudo-labels").best, masks(0.37, *num_images).best
    return MeasuredMasks(best, (other,), BETTER)


def measured_of(
    num_images: int, split: str = "train", part: str = "all", resolution: str = "image", **right: float
) -> Measured:
    """Metrics: of each kind of labels, the share of the pixels that are right, of `num_images` x 100 pixels."""
    metrics = []
    for name, share in right.items():
        matrix = np.array([[100, 0, 0], [0, 100, 0]]) * num_images // 2
        wrong = round((1 - share) * num_images * 50)
        matrix[1, 1] -= wrong
        matrix[1, 0] += wrong
        name = {"spot": SPOT, "ones": "baseline: all ones"}.get(name, name.replace("_", "-"))
        found = label_metrics(matrix)
        about = {"labels": name, "mean_iou": found.mean_iou, "num_images": num_images}
        iou = dict(zip(("background", "cat"), found.iou, strict=True))
        metrics.append(about | {"iou": iou, "confusion_matrix": matrix.tolist()})
    return Measured((split,), part, resolution, "", num_images, {}, 0, (), tuple(metrics), ("",) * len(metrics))


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
            {"measured": masks(0.61, 162)},
            "good",
            "the predictions have mIoU 0.61 on 162 images of val.",
        ),
        ({"measured": masks(0.3, 162)}, "bad", "Correct these masks before you use them"),
        (
            {"measured": better_pseudo_labels(8)},
            "careful",
            "the pseudo-labels have mIoU 0.53 on 8 images of val and the predictions have mIoU 0.37 on 8 images of val",
        ),
        (
            {"measured": masks(0.53, 14, 6)},
            "good",
            "the predictions have mIoU 0.53 over all pixels (0.53 on 14 images of train and 0.53 on 6 images of val).",
        ),
        (
            {"measured": replace(masks(0.37, 6), beaten_by="a round spot has mIoU 0.41")},
            "bad",
            "masks that need no network are better: a round spot has mIoU 0.41.",
        ),
        ({"unmeasured": Unmeasured(4)}, "careful", "but 4 images with a mask drawn by hand are not measured yet."),
        (
            {"measured": masks(0.5, 9), "unmeasured": Unmeasured(1)},
            "careful",
            "on 9 images of val. And 1 image with a mask drawn by hand is not measured yet.",
        ),
        ({"to_measure_again": "evaluate"}, "careful", "is outdated: masks were added or changed since"),
        (
            {"to_measure_again": "evaluate", "why_again": RESULTS_CHANGED, "measured": masks(0.61, 162)},
            "careful",
            "their comparison with masks drawn by hand is outdated: results were made again since",
        ),
        (
            {"to_measure_again": "evaluate", "measured": replace(masks(0.37, 6), beaten_by="a spot has mIoU 0.41")},
            "bad",
            "masks that need no network are better: a spot has mIoU 0.41.",
        ),
        (
            {"measured": masks(0.997, 29)},
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


def test_outdated_figures_at_map_resolution_make_no_better_verdict(labelled_run):
    with connect("in-process") as connection:
        evaluate_labels(labelled_run, connection, ["val"], None, ("map", "image"), deterministic=False)
    assert not write_report(labelled_run).figures.to_measure_again
    place = labelled_run.location / "evaluation" / "metrics.json"
    records = [
        each | ({"segmenter": "of an earlier network"} if each["segmenter"] and each["resolution"] == "map" else {})
        for each in read_metrics(labelled_run)
    ]
    place.write_bytes(seal({"metrics": records}))
    report = write_report(labelled_run)
    measure = f"python jobs/evaluate.py --run {labelled_run.uri} --split=val"
    assert report.figures.to_measure_again.startswith(measure)
    assert report.figures.why_again == RESULTS_CHANGED
    with connect("in-process") as connection:
        launch_step(open_run(labelled_run.uri, None, ["seeds.theta=0.3"]), connection, "seeds", restart=True)
    redo = f"python jobs/run_pipeline.py --run {labelled_run.uri} --redo-outdated"
    assert write_report(labelled_run).figures.to_measure_again == redo


@pytest.mark.parametrize("one_label", ["", "background"])
@pytest.mark.parametrize("again", ["", "evaluate"])
@pytest.mark.parametrize("num_left", [0, 9])
@pytest.mark.parametrize("why", [BETTER, "", "The predictions are better on the images of both, but only 6 could."])
@pytest.mark.parametrize("is_on_trained_masks", [False, True])
@pytest.mark.parametrize("mean_iou", [0.3, 0.61, 0.997])
@pytest.mark.parametrize("num_images", [6, 50])
@pytest.mark.parametrize("beaten_by", ["", "a round spot has mIoU 0.41"])
def test_no_verdict_contradicts_itself(
    run, one_label, again, num_left, why, is_on_trained_masks, mean_iou, num_images, beaten_by
):
    best = masks(mean_iou, num_images, labels="predictions" if why.startswith("The pred") else "pseudo-labels").best
    others = () if is_on_trained_masks else (masks(0.2, num_images).best,)
    figures = Figures(
        **GOOD,
        one_label=one_label,
        has_pseudo_labels=True,
        measured=MeasuredMasks(best, others, why, beaten_by),
        unmeasured=Unmeasured(num_left, 60, "evaluate" if num_left else ""),
        is_on_trained_masks=is_on_trained_masks,
        to_measure_again=again,
    )
    verdict = judge(run, figures)
    assert verdict is not None
    text = f"{verdict.sentence} {verdict.advice}"
    assert verdict.level == "good" or not re.search(r"\bUse\b", text), text
    assert verdict.level != "good" or not re.search(r"Do not|Nobody knows|before you use", text), text
    if "Measure again" in text or "Measure with" in text:
        assert verdict.command == "evaluate" and "they are better" not in text
    assert len(set(text.split(". "))) == len(text.split(". ")), text  # no sentence twice


@pytest.mark.parametrize(("mean_iou", "words", "level"), [(0.4986, "0.499 ", "bad"), (0.4997, "0.50 ", "good")])
def test_a_figure_is_on_the_side_of_the_limit_that_it_shows(run, mean_iou, words, level):
    verdict = judge(run, Figures(**GOOD, measured=masks(mean_iou, 50)))
    assert verdict is not None and (verdict.level, f"mIoU {words}" in verdict.sentence) == (level, True)


FAVOURED = "The given masks were corrected from exported masks ({}): what nobody changed agrees, so "


@pytest.mark.parametrize("number", [3, 50])
def test_figures_of_masks_that_were_corrected_from_one_kind_favour_it(run, number):
    """However many were measured, and whichever kind is better."""

    def advice(measured: MeasuredMasks, *steps: str) -> str:
        return judge(run, Figures(**GOOD, measured=measured, corrected_from={*steps})).advice

    both, alone = better_pseudo_labels(number), masks(0.7, number)
    for step, kind in (("pseudo_labels", "pseudo-labels"), ("predictions", "predictions")):
        too_good = "their figure is somewhat too good, also beside the others."
        assert FAVOURED.format(kind) + too_good in advice(both, step)
    of_both = FAVOURED.format("pseudo-labels and predictions")
    assert f"{of_both}these figures are somewhat too good, and" in advice(both, "pseudo_labels", "predictions")
    for steps in (("predictions",), ("predictions", "seeds")):
        assert f"{FAVOURED.format('predictions')}their figure is somewhat too good." in advice(alone, *steps)
    for steps in ((), ("pseudo_labels",), ("seeds",)):  # not known, or another kind than the measured one
        assert "corrected from" not in advice(alone, *steps)


def test_masks_that_were_measured_count_more_than_the_classifier(run):
    verdict = judge(run, Figures(**(GOOD | {"mean_precision": 0.3, "measured": masks(0.7, 50)})))
    assert verdict is not None and verdict.level == "good"


def test_a_trial_says_that_it_is_one(run):
    trial = Run(run.location, Config.model_validate({"segmenter": {"backbone": "small"}}))
    verdict = judge(trial, Figures(**GOOD))
    assert verdict is not None
    assert "this run is a trial" in verdict.sentence and "docs/examples/own_data.toml" in verdict.advice


def test_the_proposed_export_has_no_specks(run):
    verdict = judge(run, Figures(**GOOD))
    assert verdict is not None and verdict.command.endswith("--format cvat --min-object-pixels 100")


@pytest.mark.parametrize("measured", [None, masks(0.3, 50), masks(0.99, 50)])
def test_a_run_of_new_images_names_the_page_about_its_masks(run, measured):
    good = MeasuredMasks(Kind("predictions", 0.7, (Group(0.7, 50, ("val",)),)))
    assert "Look at these first" in judge(run, Figures(**GOOD, measured=good)).advice
    own, new = "docs/tutorial-cvat.md", "docs/howto-new-images.md"
    assert own in judge(run, Figures(**GOOD, measured=measured)).advice
    write_origin(run, run, "segmenter", "0" * 64, "/data/october")
    advice = judge(run, Figures(**GOOD, measured=measured)).advice
    assert new in advice and own not in advice and "Look at these first" not in advice


def test_a_small_run_of_new_images_is_not_sent_to_add_images(run):
    write_origin(run, run, "segmenter", "0" * 64, "/data/october")
    advice = judge(run, Figures(**GOOD, unmeasured=Unmeasured(0, 15))).advice
    assert (
        advice.endswith("The run has fewer than 20 images, too few to judge its masks.") and "add images" not in advice
    )
    assert "the masks of 20 images" in judge(run, Figures(**GOOD, unmeasured=Unmeasured(0, 60))).advice


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


def test_the_measured_images_of_all_splits_are_judged_together():
    groups = [
        measured_of(14, pseudo_labels=0.6, predictions=0.4),
        measured_of(10, part="report", pseudo_labels=0.1, predictions=0.1),  # the same images again
        measured_of(6, "val", pseudo_labels=0.9, predictions=1),
        measured_of(90, part="tune", resolution="map", predictions=1),
    ]
    found = measured_masks(groups[:3])
    assert found is not None
    assert (found.best.labels, found.best.num_images, found.why) == ("pseudo-labels", 20, BETTER)
    total = np.array([[1000, 0, 0], [310, 690, 0]])  # 0.6 of 700 pixels and 0.9 of 300
    assert found.best.mean_iou == pytest.approx(label_metrics(total).mean_iou)
    each = [f"{measured.metrics[0]['mean_iou']:.2f}" for measured in (groups[0], groups[2])]
    start = f"the pseudo-labels have mIoU {found.best.mean_iou:.2f} over all pixels"
    words = f"{start} ({each[0]} on 14 images of train and {each[1]} on 6 images of val)"
    assert found.in_words.startswith(f"{words} and the predictions have mIoU 0.")
    tried = measured_masks(groups)  # settings were tried on the tune part, so figures with it do not count
    assert tried is not None and [group.part for group in tried.best.groups] == ["report", "all"]
    assert measured_masks([]) is None


def test_good_masks_name_the_classes_that_are_not(run):
    found = measured_masks([measured_of(14, predictions=0.4), measured_of(6, "val", predictions=0.5)])
    assert found is not None and found.best.mean_iou > 0.5
    verdict = judge(run, Figures(**GOOD, measured=found))
    assert verdict is not None and verdict.level == "good"
    total = np.array([[1000, 0, 0], [570, 430, 0]])
    assert verdict.sentence.endswith(f" But the IoU is below 0.5 for cat ({label_metrics(total).iou[1]:.2f}).")
    iou = {"background": 0.9, "a": 0.4, "b": float("nan"), "c": 0.1, "d": 0.3, "e": 0.2, "f": 0.45}
    verdict = judge(run, Figures(**GOOD, measured=MeasuredMasks(Kind("predictions", 0.6, (Group(0.6, 50, ()),), iou))))
    assert verdict is not None and verdict.sentence.endswith("for c (0.10), e (0.20), d (0.30) and 2 more classes.")


def test_the_kinds_are_compared_on_the_images_of_both():
    groups = [measured_of(14, pseudo_labels=0.3), measured_of(6, "val", pseudo_labels=0.7, predictions=0.6)]
    found = measured_masks(groups)
    assert found is not None and (found.best.labels, found.best.num_images) == ("pseudo-labels", 20)
    assert found.best.mean_iou < found.others[0].mean_iou  # of other images
    apart = measured_masks([groups[0], measured_of(6, "val", predictions=0.6)])
    assert apart is not None and (apart.best.labels, apart.why) == ("pseudo-labels", "")


def test_masks_that_enough_images_measure_are_judged_and_the_better_ones_are_exported(run):
    """The usual end of a training on corrected masks: only validation images still measure the network."""
    groups = [measured_of(14, pseudo_labels=0.6), measured_of(6, "val", pseudo_labels=0.6, predictions=0.7)]
    found = measured_masks(groups)
    assert found is not None and (found.best.labels, found.judged.labels) == ("predictions", "pseudo-labels")
    assert found.judged.num_images == 20
    assert found.why == "The predictions are better on the images of both, but only 6 images could measure them."
    verdict = judge(run, Figures(**GOOD, measured=found))
    assert verdict is not None and verdict.level == "good" and "--labels" not in verdict.command
    rare = measured_of(6, "val", pseudo_labels=0.7, predictions=0.6)
    other = measured_masks([measured_of(14, predictions=0.6), rare])  # the finer masks stay
    assert other is not None and (other.best.labels, other.best.num_images) == ("predictions", 20)
    few = measured_masks([measured_of(12, pseudo_labels=0.6), groups[1]])
    assert few is not None and (few.best.labels, few.why) == ("predictions", "")


@pytest.mark.parametrize(("spot", "words"), [(0.5, SPOT), (0.45, ""), (0.3, "")])
def test_masks_worse_than_a_round_spot_are_worth_nothing(run, spot, words):
    groups = [
        measured_of(14, pseudo_labels=0.4, predictions=0.3),
        measured_of(14, resolution="map", pseudo_labels=0.4, predictions=0.45, spot=spot, ones=0.1),
    ]
    found = measured_masks(groups)
    assert found is not None and bool(found.beaten_by) == bool(words)
    if words:
        spot_iou, own = (groups[1].metrics[place]["mean_iou"] for place in (2, 0))
        words = (
            f"a round spot in the middle of each image has mIoU {spot_iou:.2f}, the pseudo-labels have only {own:.2f} "
        )
        verdict = judge(run, Figures(**GOOD, measured=found))
        assert verdict is not None and verdict.level == "bad"
        assert f"{words}on the same 14 images at the size of the maps." in verdict.sentence


def test_masks_that_differ_in_the_third_digit_have_three_and_equal_ones_are_not_worse(run):
    def found(spot: float, predictions: float = 0.3):
        own = measured_of(1000, pseudo_labels=0.41, predictions=predictions)
        return measured_masks(
            [own, measured_of(1000, resolution="map", pseudo_labels=0.41, predictions=0.3, spot=spot)]
        )

    worse = found(0.412)
    assert worse is not None and re.search(
        r"has mIoU (0\.\d{3}), the pseudo-labels have only (0\.\d{3}) ", worse.beaten_by
    )
    near = found(0.41002)
    assert near is not None and near.beaten_by == ""
    close = found(0.3, predictions=0.408)
    assert close is not None and close.why == BETTER
    assert len(set(re.findall(r"have mIoU (0\.\d{3}) ", close.in_words))) == 2
    same = found(0.3, predictions=0.40998)
    assert same is not None and (same.best.labels, same.why) == ("predictions", "")


def test_a_network_that_only_its_own_masks_measured_may_be_better_than_a_round_spot():
    pair = [measured_of(14, resolution=size, predictions=0.9, pseudo_labels=0.2, spot=0.5) for size in ("image", "map")]
    for known in (True, False):
        seen = [] if known else ["train"]
        groups = [
            replace(each, metrics=(dict(each.metrics[0]) | {"trained_on": seen}, *each.metrics[1:])) for each in pair
        ]
        found = measured_masks(groups)
        assert found is not None and (found.best.labels, found.beaten_by) == (
            "predictions" if known else "pseudo-labels",
            "",
        )


def test_sentence_and_command_propose_the_masks_that_were_measured_better(run):
    for measured, words in ((better_pseudo_labels(8), START_FROM), (better_pseudo_labels(14, 6), USE)):
        verdict = judge(run, figures := Figures(**GOOD, measured=measured))
        assert verdict is not None and words in verdict.advice
        assert verdict.command == export_command(run, figures)
        assert verdict.command.endswith("--format cvat --labels pseudo_labels --min-object-pixels 100")
    figures = Figures(**GOOD, measured=masks(0.6, 30, labels="pseudo-labels"), is_on_trained_masks=True)
    verdict = judge(run, figures)
    assert verdict is not None and "The predictions were measured only on masks that the network" in verdict.advice


@pytest.mark.parametrize(
    ("measured", "left", "words"),
    [
        (None, Unmeasured(0, 60, "", "train or val"), "correct the masks of 20 images of train or val and measure"),
        (masks(0.5, 10, 6), Unmeasured(0, 60, "", "train or val"), "the masks of 4 more images of train or val and"),
        (masks(0.5, 19), Unmeasured(0, 60), "the masks of 1 more image and measure (docs/tutorial-cvat.md)."),
        (
            masks(0.5, 10),
            Unmeasured(4, 60, "evaluate"),
            "Measure with these too, then write the report again. Also correct the",
        ),
        (masks(0.5, 10), Unmeasured(4, 60, "evaluate"), "the masks of 6 more images and measure"),
        (
            masks(0.5, 10),
            Unmeasured(0, 3, "", "val", "the network was trained on the masks of train"),
            "10 more images of val (the network was trained on the masks of train) and measure "
            "(docs/tutorial-cvat.md). The run has only 3 such images without one",
        ),
        (masks(0.5, 10), Unmeasured(), "The run has no such image, so add images to it (docs/howto-new-images.md)."),
    ],
)
def test_the_advice_says_how_many_masks_are_missing(run, measured, left, words):
    verdict = judge(run, Figures(**GOOD, measured=measured, unmeasured=left))
    assert verdict is not None and words in verdict.advice
    assert verdict.command == (left.command or export_command(run, Figures()))


@pytest.mark.parametrize(
    ("splits", "part", "words"),
    [
        (("val",), "all", "1,200 images of val"),
        (("train", ""), "report", "1,200 images of the report part of train and no split"),
        (("",), "all", "1,200 images"),
    ],
)
def test_the_measured_images_are_named_by_their_splits(splits, part, words):
    assert Group(0.5, 1200, splits, part).images == words


def test_a_network_s_figures_on_masks_of_its_training_decide_nothing():
    measured = measured_of(30, predictions=0.9, pseudo_labels=0.8)
    seen = dict(measured.metrics[0]) | {"trained_on": ["train"]}
    alone = replace(measured, metrics=(seen,), notes=("",))
    assert measured_masks([alone]) is None and is_on_trained_masks([alone])
    both = measured_masks([replace(measured, metrics=(seen, measured.metrics[1]))])
    assert both is not None and (both.best.labels, both.others) == ("pseudo-labels", ())
    assert not is_on_trained_masks([replace(alone, notes=("an earlier network",))])


def test_a_class_that_no_mask_shows_is_named():
    record = {"iou": {"background": 0.5, "cat": 0.0, "dog": 0.0, "cow": None}}
    matrix = [[5, 3, 2, 0, 0], [0, 0, 0, 0, 0], [2, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
    measured = replace(measured_of(1), metrics=(record | {"confusion_matrix": matrix},), notes=("",))
    assert measured.absent == ["cat"]


def test_the_pipeline_offers_masks_that_have_objects(run):
    figures = Figures(one_label="background")
    assert export_command(run, figures).endswith("--format cvat --labels pseudo_labels --min-object-pixels 100")
    assert export_command(run, Figures()).endswith("--format cvat --min-object-pixels 100")


@pytest.fixture
def labelled_run(decided_run) -> Run:
    """A run with pseudo-labels and predictions of all images."""
    run = open_run(decided_run.uri, None, ["predictions.splits=train,val"])
    with connect("in-process") as connection:
        launch_step(run, connection, "pseudo_labels")
        launch_step(run, connection, "predictions", restart=True)
    return run


def measure(run: Run, split: str, part=None, resolutions=("image",)) -> None:
    with connect("in-process") as connection:
        evaluate_labels(run, connection, [split], part, resolutions, deterministic=False)


def test_the_report_counts_the_masks_of_a_run_and_says_what_is_left(labelled_run):
    run, command = labelled_run, f"python jobs/evaluate.py --run {labelled_run.uri}"
    left = write_report(run).figures.unmeasured
    assert (left.num_masks, left.num_others) == (14, 0)
    assert left.command == f"{command} --split=train --part=all && {command} --split=val"
    assert left.where == "train or val"
    measure(run, "train", "report")
    measure(run, "val")
    left = write_report(run).figures.unmeasured
    assert (left.num_masks, left.command) == (3, f"{command} --split=train --part=all")  # the tune part
    measure(run, "train", "all")
    written = write_report(run)
    assert written.figures.measured is not None and written.figures.unmeasured.num_masks == 0
    kinds = {each.labels: each for each in (written.figures.measured.best, *written.figures.measured.others)}
    assert kinds["pseudo-labels"].num_images == 14
    assert "12 images of train and " in kinds["pseudo-labels"].in_words()
    with connect("in-process") as connection:
        sweep(run, connection, ["theta=0.1"], [], None, deterministic=False)
    measured = write_report(run).figures.measured
    assert measured is not None  # the report part counts, the tune part has chosen settings
    assert {group.part for group in (*measured.best.groups, *(measured.others and measured.others[0].groups))} == {
        "report",
        "all",
    }
    left = unmeasured_images(run, replace(measured, best=kinds["pseudo-labels"]))
    assert left.where == "the report part of train or val"
    assert left.why == "settings were tried on the tune part of train"


def test_the_page_names_classes_that_no_mask_shows(predicted_run, html_of):
    measure(predicted_run, "val")
    records = read_metrics(predicted_run)
    write_report(predicted_run)
    assert "no mask shows star" not in html_of(predicted_run)
    for record in records:
        record["confusion_matrix"][1], record["iou"]["star"] = [0] * 7, 0.0
    (predicted_run.location / "evaluation" / "metrics.json").write_bytes(seal({"metrics": records}))
    write_report(predicted_run)
    assert "no mask shows star: where predicted, the IoU is 0, and mIoU includes it</caption>" in html_of(predicted_run)


def test_the_first_pictures_show_the_masks_that_are_proposed(labelled_run, monkeypatch, html_of):
    for name, caption in (("pseudo-labels", "Mask: pseudo-labels"), ("predictions", "Mask: predictions")):
        found = masks(0.5, 3, labels=name)
        monkeypatch.setattr("jobs.reporting.page.measured_masks", lambda measured, found=found: found)
        write_report(labelled_run)
        lead = html_of(labelled_run).partition('id="lead"')[2].partition("</section>")[0]
        assert caption in lead and lead.count("Mask: ") == lead.count(caption)


def test_the_first_pictures_show_both_kinds_of_masks_before_anything_is_measured(labelled_run, html_of):
    write_report(labelled_run)
    lead = html_of(labelled_run).partition('id="lead"')[2].partition("</section>")[0]
    captions = re.findall("<figcaption>(.*?)</figcaption>", lead)
    assert captions[:4] == ["Photograph", "Mask: predictions", "Mask: pseudo-labels", "Doubt"] == captions[-4:]
    assert "No figures say yet which of the two masks is better" in lead


def test_page_and_command_say_the_verdict(predicted_run, capsys, html_of):
    report.main(["--run", predicted_run.uri])
    sentence = "Do not use these masks: this run is a trial with the tiny network"
    assert sentence in capsys.readouterr().out
    page = html_of(predicted_run)
    assert page.index(sentence) < page.index('id="overview"')
    assert "random scores have 0." in page
