"""The demo's data: drawn scenes, the run's settings, the manifest."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene
from jobs.preparation.prepare import prepare
from jobs.run.directory import Run, open_run
from storage.label_folder import encode_label_png
from storage.location import Location
from storage.sources import SourceImage

DEMO_FOLDER = "~/ficklenet-demo"
NUM_TRAINING, NUM_VALIDATION = 300, 60
SETTINGS = {
    "unit_size": 30,
    "images": {"input_size": 129},
    "classifier": {
        "backbone": "small",
        "weights": "none",
        "kernel_size": 5,
        "epochs": 12,
        "batch_size": 5,
        "learning_rate": 0.02,
        "backbone_learning_rate_factor": 0.1,
        "halve_every": 6,
    },
    "maps": {"normalization": "max"},
    "segmenter": {
        "backbone": "small",
        "weights": "classifier",
        "dilations": [4],
        "epochs": 6,
        "min_steps": 1,  # these are enough for drawn scenes
        "batch_size": 10,
        "learning_rate": 1e-3,
    },
}


def prepare_demo(config_file: str | None = None, assignments: list[str] | None = None) -> Run:
    """Draws what is missing of the demo's data, makes the manifest and returns the run."""
    folder = Path(DEMO_FOLDER).expanduser()
    run = open_run(str(folder / "run"), config_file, assignments, defaults=SETTINGS)
    print(f"demo: everything is in {folder}", flush=True)
    prepare(run, draw_data_set(Location(str(folder / "data"))), DRAWN_CLASS_NAMES)
    return run


def draw_data_set(folder: Location) -> list[SourceImage]:
    """Draws the scenes that are missing in a folder; they are always the same scenes.

    The folder's `labels.csv` lists them in the format of `prepare_dataset.py --csv`.
    """
    images = []
    total = NUM_TRAINING + NUM_VALIDATION
    for index in tqdm(range(total), desc="draw", disable=None):
        split = "train" if index < NUM_TRAINING else "val"
        image, mask = (
            folder / "images" / f"scene_{index:04d}.png",
            folder / "masks" / f"scene_{index:04d}.png",
        )
        scene = draw_scene(index)
        if not mask.exists():  # drawn last
            image.write_bytes(_png(Image.fromarray(scene.image)))
            mask.write_bytes(encode_label_png(scene.mask))
        labels = tuple(DRAWN_CLASS_NAMES[label] for label in scene.labels)
        images.append(SourceImage(f"scene_{index:04d}", image.uri, labels, split, mask.uri))
    (folder / "labels.csv").write_bytes(_table(images).encode())
    return images


def _table(images: Sequence[SourceImage]) -> str:
    rows = [
        f"images/{image.image_id}.png,{';'.join(image.labels)},{image.split},masks/{image.image_id}.png"
        for image in images
    ]
    return "\n".join(["image,labels,split,mask", *rows, ""])


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
