"""The benchmark for a bare GPU machine runs from end to end, in small and on a CPU."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

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


def test_every_supervision_is_trained_and_scored_with_and_without_crf(tmp_path):
    torch.save(drawn_pack(), tmp_path / "pack.pt")
    files = ["--pack", str(tmp_path / "pack.pt"), "--out", str(tmp_path / "out"), "--size", "33"]
    small = [
        "--backbone",
        "small",
        "--epochs",
        "1",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--scales",
        "1",
        "2",
        "--mirror",
    ]
    plain = run("train", *files, *small)
    names = ["weak-seeds-0", "semi-seeds-0", "full-0"]
    assert [line["name"] for line in plain] == names
    refined = run("score", *files)
    assert sorted(line["name"] for line in refined) == sorted(names)
    assert all(0 <= line["val_miou"] <= 1 and not line["crf"] for line in plain) and all(r["crf"] for r in refined)
