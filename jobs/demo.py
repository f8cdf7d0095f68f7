"""The built-in demo: draws a small data set for the pipeline, or for its first half, maps and a picture of them."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene
from jobs.compute import connected
from jobs.contact_sheet import draw_contact_sheet
from jobs.pictures import voc_palette
from jobs.prepare_dataset import prepare
from jobs.run import Run, open_run
from jobs.train_ficklenet import train_classifier
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
        "batch_size": 10,
        "learning_rate": 1e-3,
    },
}


def run_demo(config_file: str | None = None, assignments: list[str] | None = None) -> None:
    """Makes whatever of the demo's maps is missing; prints where everything is."""
    from jobs.generate_maps import generate  # that module runs the demo when it is given no run

    run = prepare_demo(config_file, assignments)
    with connected(run.config.cluster) as connection:
        train_classifier(run, connection)
        generate(run, connection)
    print(f"demo: a picture of the maps: {draw_contact_sheet(run, num_images=8)}")
    print(f"demo: go on with 'python jobs/run_pipeline.py --run {run.uri}'.")


def prepare_demo(config_file: str | None = None, assignments: list[str] | None = None) -> Run:
    """Draws what is missing of the demo's data; its run, with the manifest made."""
    folder = Path(DEMO_FOLDER).expanduser()
    run = open_run(str(folder / "run"), config_file, assignments, defaults=SETTINGS)
    print(f"demo: everything is in {folder}", flush=True)
    prepare(run, draw_data_set(Location(str(folder / "data"))), DRAWN_CLASS_NAMES)
    return run


def draw_data_set(folder: Location) -> list[SourceImage]:
    """Draws the scenes that are missing in a folder; the same scenes always.

    The folder's `labels.csv` lists them as `prepare_dataset.py --csv` reads them.
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
            mask.write_bytes(_png(_palette_image(scene.mask)))
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


def _palette_image(labels: np.ndarray) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette(voc_palette().tobytes())
    return image


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
