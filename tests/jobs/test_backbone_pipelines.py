"""The whole pipeline with backbones of timm on drawn scenes: killed in its maps, continued, exported, reported."""

import importlib.util
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import export_labels, run_pipeline
from jobs.preparation.prepare import prepare
from jobs.run.directory import open_run

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed"),
]


def settings_of(name: str, input_size: int, head: str) -> dict[str, object]:
    network = {"backbone": name, "output_stride": 16, "epochs": 1, "min_steps": 1, "batch_size": 4}
    return {
        "unit_size": 2,
        "images": {"input_size": input_size},
        "data": {"train_splits": ["train"]},
        "classifier": {**network, "weights": "none"},
        "maps": {"normalization": "max"},
        "seeds": {"theta": 0.1, "background_cue": "evidence"},
        "segmenter": {**network, "weights": "classifier", "head": head},
        "cluster": {"address": "in-process"},
    }


@pytest.mark.parametrize(
    ("name", "input_size", "head"),
    [
        ("timm/resnet10t", 65, "deeplab"),
        ("timm/efficientnet_lite0", 65, "deeplabv3plus"),
        ("timm/vit_tiny_patch16_224", 64, "deeplab"),
        ("timm/convnext_atto", 64, "deeplabv3plus"),
    ],
)
def test_a_killed_pipeline_continues_and_its_masks_are_exported_and_reported(
    name, input_size, head, drawn_images, tmp_path, capsys
):
    folder = tmp_path / "run"
    prepare(open_run(str(folder), defaults=settings_of(name, input_size, head)), drawn_images, DRAWN_CLASS_NAMES)
    command = ["--run", str(folder)]

    # 1. Killed as soon as a unit of the maps is complete
    receipts = folder / "maps" / "done"
    process = multiprocessing.get_context("fork").Process(target=run_pipeline.main, args=(command,))
    process.start()
    while process.is_alive() and not list(receipts.glob("*.json")):
        time.sleep(0.005)
    process.kill()
    process.join()
    made = [*receipts.glob("*.json"), folder / "classifier" / "model.pt"]
    before = {path: path.stat().st_mtime_ns for path in made}
    assert 1 < len(before) < 1 + 7  # some of the seven units are left
    capsys.readouterr()

    # 2. The same command does the rest, and nothing twice
    run_pipeline.main(command)
    assert "classifier: already trained" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(receipts.glob("*.json"))) == 7

    # 3. Exported and reported
    for arguments in (["--format", "coco", "--labels", "pseudo_labels"], ["--format", "png"]):
        export_labels.main([*command, *arguments, "--out", str(tmp_path / arguments[1])])
    assert len(json.loads((tmp_path / "coco" / "annotations.json").read_text())["images"]) == 14
    assert len(list((tmp_path / "png").glob("*.png"))) == 2
    page = Path(folder, "report", "index.html").read_text()
    assert name in page and "Segmentation network" in page
