"""Runs side by side, and the list of images to look at first."""

import csv
import json
from pathlib import Path

import pytest

from ficklenet.metrics import disagreement
from jobs import compare
from jobs.reporting.page import write_report
from jobs.run.directory import Run, open_run, record_run


def measure(run: Run, labels: str, value: float | None, part: str = "report") -> None:
    """Writes one measurement as `evaluate` does."""
    figures = dict.fromkeys(("mean_iou", "foreground_precision", "foreground_recall"), value)
    record = {"labels": labels, "splits": ["train"], "part": part, "resolution": "map", "num_images": 9, **figures}
    (run.location / "evaluation" / "metrics.json").write_bytes(json.dumps({"metrics": [record]}).encode())


def test_settings_that_differ_and_metrics_stand_side_by_side(seeded_run, finished_maps_run, capsys):
    other = open_run(finished_maps_run.uri, None, ["seeds.theta=0.5", "predictions.scales=0.75,1"])
    record_run(other)
    measure(seeded_run, "seeds", 0.4321)
    measure(finished_maps_run, "seeds", None)
    compare.main([seeded_run.uri, finished_maps_run.uri])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["seeds.theta", "0.35", "0.5"] in lines and ["predictions.scales", "1.0", "0.75,1.0"] in lines
    assert not any(line[:1] == ["unit_size"] for line in lines)
    assert ["seeds,", "train,", "report", "part,", "map", "resolution,", "mIoU", "0.432", "-"] in lines


def test_one_run_cannot_be_compared_and_equal_ones_say_so(seeded_run, capsys):
    with pytest.raises(ValueError, match=r"given only .*\. Give two runs or more"):
        compare.main([seeded_run.uri])
    compare.main([seeded_run.uri, seeded_run.uri])
    printed = capsys.readouterr().out
    assert "All settings are the same." in printed and "None of these runs has metrics" in printed


def test_the_review_list_has_every_mapped_image_the_most_doubtful_first(finished_maps_run):
    write_report(finished_maps_run, 0)
    with Path(finished_maps_run.uri, "report", "review.csv").open() as file:
        rows = list(csv.DictReader(file))
    manifest, store = finished_maps_run.manifest(), finished_maps_run.maps()
    assert sorted(row["image_id"] for row in rows) == [row.image_id for row in manifest.iter_rows() if row.labels]
    found = [float(row["disagreement"]) for row in rows]
    assert found == sorted(found, reverse=True) and len(set(found)) > 1
    maps = store.read(manifest.index_of(rows[0]["image_id"]))
    of_class = [
        disagreement(*pair, finished_maps_run.config.seeds.theta) for pair in zip(maps.max, maps.mean, strict=True)
    ]
    assert max(1.0 if value is None else value for value in of_class) == pytest.approx(found[0], abs=1e-4)
    page = Path(finished_maps_run.uri, "report", "index.html").read_text()
    assert "Look at these first" in page and rows[0]["image_id"] in page
