"""Draws README's first picture: photographs, their maps and their masks, made by a trained run.

    python docs/readme_picture.py --run RUN --out docs/photographs.jpg cat.jpg=cat cow.jpg=cow dog.jpg=dog

The photographs are in docs/examples/photographs. The run must have a trained classifier and the network of
`learn_cells.py`. The pictures are made as the jobs make them: the maps as in `generate_maps.py`, the masks as in
`refine_maps.py` and `make_pseudo_labels.py`, with the run's settings. Nothing is written into the run.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the project need not be installed

import numpy as np
import torch
from PIL import Image

from ficklenet.resampling import resize_square
from jobs.maps.deterministic import DeterministicMapper
from jobs.maps.evidence import Evidence
from jobs.maps.refined_job import Refiner
from jobs.notebook.trained_run import TrainedRun, open_trained
from jobs.reporting.pictures import SheetRow, contact_sheet, heat_tile, image_tile, label_colours, label_tile
from storage.images import read_image
from storage.label_values import ignore_value

PHOTOGRAPHS = Path(__file__).parent / "examples" / "photographs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("photographs", nargs="+", metavar="FILE=CLASS")
    given = parser.parse_args()
    run = open_trained(given.run)
    samples = run.run.config.maps.num_samples
    columns = ["photograph", "map without sampling", f"maximum of {samples} samples", "mask"]
    rows, colours = [], {}
    for word in given.photographs:
        file, name = word.split("=", 1)
        rows.append(draw(run, file, name))
        colours[name] = label_colours(np.array(run.class_names.index(name) + 1), ignore_value(len(run.class_names)))
    contact_sheet(columns, rows, colours).save(given.out, quality=90, optimize=True)


def draw(run: TrainedRun, file: str, name: str) -> SheetRow:
    """The tiles of one photograph."""
    image = read_image(str(PHOTOGRAPHS / file))
    tile, maps = image_tile(image), run.localize(image, [name], file)
    geometry = run.classifier.spec.geometry
    (deterministic,) = DeterministicMapper(run.run)(image, maps.classes)
    mask = label_tile(mask_of(run, image, maps.classes), ignore_value(len(run.class_names)), tile.size)
    heats = [heat_tile(tile, evidence, geometry) for evidence in (deterministic, maps.max[0])]
    return SheetRow(f"label: {name}", [tile, *heats, Image.blend(tile, mask, 0.6)])


def mask_of(run: TrainedRun, image: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The labels (H, W) of the refined maps, refined by the CRF at image size."""
    refiner = Refiner(run.run, run.device)
    geometry, pixels = refiner.stages.spec.geometry, resize_square(image, run.run.config.images.input_size)[None]
    ((_, stages),) = refiner.stages.of(pixels, np.ones(1, bool))
    colours = geometry.at_cells(torch.from_numpy(pixels))[0].permute(1, 2, 0).contiguous().numpy()
    refined = refiner.refine(stages, colours, classes)
    evidence = Evidence(refined, refined, classes, None, geometry)
    return evidence.pseudo_labels(image, run.run.config, ignore_value(len(run.class_names)))


if __name__ == "__main__":
    main()
