"""The benchmark for a bare GPU machine runs from end to end, in small and on a CPU."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax

from ficklenet.backbones import build_backbone
from ficklenet.drawing import draw_scene
from ficklenet.seeds import resize_labels

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_segment.py"


def drawn_pack() -> dict:
    """As segmentation_pack.py writes it: 4 training images, of which one is strong, and 2 for validation."""
    scenes = [draw_scene(index, num_classes=2) for index in range(6)]
    images = [jpeg(scene.image) for scene in scenes]
    truth = torch.from_numpy(np.stack([resize_labels(scene.mask, (5, 5)) for scene in scenes[:4]]))
    return {
        "class_names": ["a", "b"],
        "train": {
            "ids": list("abcd"),
            "images": images[:4],
            "seeds": {"seeds": truth},
            "labels": torch.tensor([[label in scene.labels for label in (0, 1)] for scene in scenes[:4]]),
            "truth": truth,
            "strong": torch.tensor([True, False, False, False]),
        },
        "val": {"ids": list("ef"), "images": images[4:], "truth": [torch.from_numpy(s.mask) for s in scenes[4:]]},
    }


def jpeg(image: np.ndarray) -> torch.Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG")
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def run(*arguments: str) -> list[dict]:
    """The lines of JSON that it prints."""
    command = [sys.executable, str(SCRIPT), *arguments]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, capture_output=True, text=True, check=True, env=alone).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


SMALL = ["--backbone", "small", "--epochs", "1", "--batch", "2", "--device", "cpu", "--scales", "1", "2", "--mirror"]


@pytest.mark.cluster
def test_every_supervision_is_trained_and_scored_with_and_without_crf(tmp_path):
    torch.save(drawn_pack(), tmp_path / "pack.pt")
    files = ["--pack", str(tmp_path / "pack.pt"), "--out", str(tmp_path / "out"), "--size", "33"]
    plain = run("train", *files, *SMALL)
    names = ["weak-seeds-0", "semi-seeds-0", "full-0"]
    assert [line["name"] for line in plain] == names
    refined = run("score", *files)
    assert sorted(line["name"] for line in refined) == sorted(names)
    assert all(0 <= line["val_miou"] <= 1 and not line["crf"] for line in plain) and all(r["crf"] for r in refined)


@pytest.mark.cluster
def test_features_of_frozen_stages_that_are_computed_once_change_no_training(tmp_path):
    torch.save(drawn_pack(), tmp_path / "pack.pt")
    torch.save(build_backbone("small").state_dict(), tmp_path / "weights.pt")
    options = ["--pack", str(tmp_path / "pack.pt"), "--size", "33", "--weights", str(tmp_path / "weights.pt"), *SMALL]
    for name, more in (("cached", []), ("anew", ["--every-pass"])):
        run("train", *options, "--frozen-stages", "2", "--supervision", "full", "--out", str(tmp_path / name), *more)
    cached, anew = (np.load(tmp_path / name / "full-0.npz")["logits"] for name in ("cached", "anew"))
    np.testing.assert_allclose(softmax(cached, axis=1), softmax(anew, axis=1), atol=2e-3)
