"""From finished maps to seeds and pseudo-labels: what is stored, resume, refusals, saliency, skipped images."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from ficklenet.seeds import aggregate, background_cue
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from storage.images import read_image, read_mask
from storage.records import seal
from storage.steps import Step


def make_seeds(run: Run, *assignments: str, **options) -> Run:
    changed = open_run(run.uri, None, assignments)
    with connect("in-process") as connection:
        launch_step(changed, connection, "seeds", **options)
    return changed


def make_labels(run: Run, *assignments: str, **options) -> None:
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, "pseudo_labels", **options)


def stored_seeds(run: Run) -> np.ndarray:
    store = run.seeds()
    return np.stack([store.read(index) for index in range(store.num_images)])


def finishing_times(run: Run, step: str = "seeds") -> dict[int, float]:
    return {unit: receipt.finished for unit, receipt in Step(run.location / step).receipts().items()}


def skipped(run: Run, step: str) -> dict[str, str]:
    receipts = Step(run.location / step).receipts().values()
    return {skip.image_id: skip.reason for receipt in receipts for skip in receipt.skipped}


def write_saliency(file: Path, level: int) -> str:
    Image.fromarray(np.full((60, 80), level, np.uint8)).save(file)  # of the shape of the drawn images
    return str(file)


def test_stored_seeds_are_the_aggregated_maps(finished_maps_run):
    run = make_seeds(finished_maps_run)
    store, found = run.maps(), stored_seeds(run)
    assert found.shape == (14, 9, 9)
    for index in range(14):
        maps = store.read(index)
        max_, mean = maps.max.astype(np.float32), maps.mean.astype(np.float32)
        cue = background_cue(max_, None, saliency_threshold=0.06, evidence_threshold=0.2)
        expected = aggregate(max_, mean, maps.classes, cue, theta=0.35, priority="background", ignore_value=255)
        np.testing.assert_array_equal(found[index], expected)
    assert len(np.unique(found)) > 3  # the maps are no constant


def test_relaunch_makes_only_the_missing_units(finished_maps_run, capsys):
    make_seeds(finished_maps_run)
    before, seeds_before = finishing_times(finished_maps_run), stored_seeds(finished_maps_run)
    (Path(finished_maps_run.uri) / "seeds" / "done" / "000002.json").unlink()
    make_seeds(finished_maps_run)
    after = finishing_times(finished_maps_run)
    assert {unit for unit in after if after[unit] != before[unit]} == {2}
    np.testing.assert_array_equal(stored_seeds(finished_maps_run), seeds_before)
    assert "1 of 4 units to do (4 of 14 images)" in capsys.readouterr().out


def test_incomplete_maps_are_refused_with_what_is_missing(finished_maps_run):
    (Path(finished_maps_run.uri) / "maps" / "done" / "000001.json").unlink()
    with pytest.raises(ValueError) as refusal:
        make_seeds(finished_maps_run)
    uri = finished_maps_run.uri
    assert str(refusal.value) == (
        "aggregate_seeds: maps are complete for 10 of 14 images (first missing: scene_0004). "
        f"Run 'python jobs/generate_maps.py --run {uri}' first."
    )
    assert not (Path(uri) / "seeds").exists()


def test_another_theta_is_refused_then_made_anew_without_new_maps(finished_maps_run):
    make_seeds(finished_maps_run)
    maps_before, before = finishing_times(finished_maps_run, "maps"), stored_seeds(finished_maps_run)
    with pytest.raises(ValueError, match=r"seeds.theta: 0.35 -> 0.9\).*--restart seeds"):
        make_seeds(finished_maps_run, "seeds.theta=0.9")
    make_seeds(finished_maps_run, "seeds.theta=0.9", restart=True)
    assert finishing_times(finished_maps_run, "maps") == maps_before
    after = stored_seeds(finished_maps_run)
    is_class = lambda labels: (labels > 0) & (labels < 255)  # noqa: E731
    assert is_class(after).sum() < is_class(before).sum()


def test_maps_made_with_other_settings_are_refused(finished_maps_run):
    with pytest.raises(ValueError, match=r"made with other settings \(maps.num_samples: 8 -> 9\).*--restart maps"):
        make_seeds(finished_maps_run, "maps.num_samples=9")


def test_seeds_of_replaced_maps_are_refused(finished_maps_run):
    make_seeds(finished_maps_run)
    step = finished_maps_run.location / "maps" / "step.json"
    record = json.loads(step.read_bytes())
    record["fingerprint"]["seed"] = 1
    step.write_bytes(seal({key: value for key, value in record.items() if key not in ("sealed", "checksum")}))
    with pytest.raises(ValueError, match=r"its maps changed since"):
        make_seeds(finished_maps_run)


def test_saliency_gives_the_background_and_an_unreadable_one_skips_its_image(
    map_images, drawn_images, tmp_path, capsys
):
    dark, bright = write_saliency(tmp_path / "dark.png", 0), write_saliency(tmp_path / "bright.png", 255)
    torn = Path(write_saliency(tmp_path / "torn.png", 0))
    images = [
        replace(drawn_images[0], saliency_uri=dark),
        replace(drawn_images[1], saliency_uri=bright),
        replace(drawn_images[2], saliency_uri=str(torn)),
        drawn_images[3],
    ]
    run = map_images(images, "seeds.evidence_threshold=1.0")
    torn.write_bytes(b"")  # it was good when the run was prepared
    make_seeds(run)
    seeds = stored_seeds(run)
    assert (seeds[0] == 0).all()  # background wins wherever it is
    assert (seeds[1] != 0).all() and (seeds[1] != 255).any()
    assert (seeds[2] == 255).all()
    assert (seeds[3] == 0).any()  # no saliency map: low evidence
    assert skipped(run, "seeds") == {images[2].image_id: "saliency map: empty file"}

    make_seeds(run, "seeds.background_cue=evidence", restart=True)
    assert skipped(run, "seeds") == {}
    assert (
        "seeds: 3 images have saliency maps, and seeds.background_cue=evidence does not use them. To use them: "
        f"'python jobs/aggregate_seeds.py --run {run.uri} "
    ) in capsys.readouterr().out
    assert not (stored_seeds(run)[0] == 0).all()


def test_saliency_maps_that_were_away_are_read_once_they_are_back(map_images, drawn_images, tmp_path, capsys):
    place = Path(write_saliency(tmp_path / "saliency.png", 255))
    run = map_images([replace(image, saliency_uri=str(place)) for image in drawn_images[:4]])
    away = place.rename(tmp_path / "away.png")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"4 of 4 images had to be skipped \(mostly: saliency map: missing"):
            make_seeds(run)
    away.rename(place)
    make_seeds(run)
    assert "seeds: 4 images done, 0 skipped" in capsys.readouterr().out


def test_images_without_maps_are_ignored_everywhere_and_reported(map_images, drawn_images):
    images = [drawn_images[0], replace(drawn_images[1], uri="/gone.png"), replace(drawn_images[2], labels=())]
    run = map_images(images)
    make_seeds(run)
    seeds = stored_seeds(run)
    assert (seeds[0] != 255).any()
    assert (seeds[1] == 255).all() and (seeds[2] == 255).all()
    assert skipped(run, "seeds") == {images[1].image_id: "missing: no such file"}
    make_labels(run)
    assert skipped(run, "pseudo_labels") == skipped(run, "seeds")
    unlabelled = read_mask(run.labels("pseudo_labels").place(images[2].image_id).uri, range(1, 6))
    assert unlabelled.shape == (120, 160) and (unlabelled == 255).all()


def test_unlabelled_images_are_seeded_by_their_predicted_classes(map_images, drawn_images):
    settings = ["maps.classes=predicted", "maps.predicted_threshold=0.0", "maps.max_classes=2"]
    run = map_images([drawn_images[0], replace(drawn_images[1], labels=())], *settings)
    make_seeds(run)
    predicted = run.maps().read(1).classes + 1
    found = set(np.unique(stored_seeds(run)[1])) - {0, 255}
    assert found and found <= set(predicted.tolist())


def test_pseudo_labels_label_every_pixel_by_the_images_classes(finished_maps_run, capsys):
    make_labels(finished_maps_run)
    manifest = finished_maps_run.manifest()
    for row in manifest.iter_rows():
        labels = read_mask(finished_maps_run.labels("pseudo_labels").place(row.image_id).uri, manifest.class_values)
        assert labels.shape == read_image(row.uri).shape[:2]
        assert set(np.unique(labels)) <= {0, *(label + 1 for label in row.labels)}
    assert "14 images done, 0 skipped, 0 left" in capsys.readouterr().out
    before = finishing_times(finished_maps_run, "pseudo_labels")
    make_labels(finished_maps_run)
    assert finishing_times(finished_maps_run, "pseudo_labels") == before


def test_large_images_are_labelled_at_a_smaller_size(finished_maps_run):
    make_labels(finished_maps_run, "pseudo_labels.max_side=40")
    labels = read_mask(finished_maps_run.labels("pseudo_labels").place("scene_0000").uri, range(1, 6))
    assert labels.shape == (120, 160)
    assert (labels[::4] == labels[1::4]).mean() > 0.9  # enlarged


def test_a_launch_whose_step_was_restarted_says_so_whatever_failed_first(finished_maps_run, monkeypatch):
    def restarted_meanwhile(maker, row):
        step = maker.run.step("seeds")
        monkeypatch.setattr(Step, "require_idle", lambda step: None)  # the other host does not see this one's heartbeat
        step.open({"theta": 0.5}, "aggregate_seeds", restart=True)
        raise FileNotFoundError("seeds.zarr: there are no arrays here yet.")

    monkeypatch.setattr("jobs.maps.seeds_job.SeedMaker.__call__", restarted_meanwhile)
    with pytest.raises(ValueError, match="another launch restarted this step while this launch was running"):
        make_seeds(finished_maps_run)
