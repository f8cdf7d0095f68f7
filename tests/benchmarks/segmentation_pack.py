"""Packs what gpu_segment.py needs into one file: images, seeds, masks.

    python tests/benchmarks/segmentation_pack.py --run R --strong ids.txt --out pack.pt

Reads a run whose seeds are made. `--seeds NAME=RUN` adds another run's seeds of the same manifest, such as those
without saliency. Images are stored as JPEG with the longer side at most `--side`; masks of training images at map size,
masks of validation images at the size of the stored image.
"""

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from PIL import Image

from ficklenet.seeds import resize_labels
from jobs.run.directory import Run, open_run
from storage.images import read_image, read_mask
from storage.manifest import Manifest, ManifestRow
from storage.seed_store import SeedStore


def main() -> None:
    options = parse_options()
    run = open_run(options.run)
    manifest = run.manifest()
    rows = list(enumerate(manifest.rows(0, manifest.num_images)))
    train = [(index, row) for index, row in rows if row.split == options.train and not row.problem]
    val = [(index, row) for index, row in rows if row.split == options.val and not row.problem and row.mask_uri]
    strong = set(Path(options.strong).read_text().split()) if options.strong else set()
    stores = {"seeds": run.seeds()}
    for name, _, place in (text.partition("=") for text in options.seeds):
        stores[name] = SeedStore.open(open_run(place).location / "seeds" / "seeds.zarr")
    labels = torch.zeros(len(train), manifest.num_classes, dtype=torch.bool)
    for number, (_, row) in enumerate(train):
        labels[number, list(row.labels)] = True
    content = {
        "class_names": list(manifest.class_names),
        "train": {
            "ids": [row.image_id for _, row in train],
            "images": [packed_image(row, options.side) for _, row in train],
            "seeds": {name: stacked([store.read(index) for index, _ in train]) for name, store in stores.items()},
            "labels": labels,
            "truth": stacked([map_truth(run, manifest, row, stores["seeds"].grid) for _, row in train]),
            "strong": torch.tensor([row.image_id in strong for _, row in train]),
        },
        "val": {
            "ids": [row.image_id for _, row in val],
            "images": [packed_image(row, options.side) for _, row in val],
            "truth": [image_truth(manifest, row, options.side) for _, row in val],
        },
    }
    torch.save(content, options.out)
    size = options.out.stat().st_size / 2**20
    print(f"{options.out}: {len(train)} training images ({len(strong)} strong), {len(val)} validation, {size:.0f} MiB")


def packed_image(row: ManifestRow, side: int) -> torch.Tensor:
    """The bytes of a JPEG, uint8."""
    image = Image.fromarray(read_image(row.uri))
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def map_truth(run: Run, manifest: Manifest, row: ManifestRow, grid: tuple[int, int]) -> np.ndarray:
    if not row.mask_uri:
        return np.full(grid, 255)
    return resize_labels(read_mask(row.mask_uri, manifest.class_values), grid)


def image_truth(manifest: Manifest, row: ManifestRow, side: int) -> torch.Tensor:
    mask = read_mask(row.mask_uri or "", manifest.class_values)
    image = Image.new("L", mask.shape[::-1])
    image.thumbnail((side, side))
    return torch.from_numpy(np.ascontiguousarray(resize_labels(mask, image.size[::-1]))).to(torch.uint8)


def stacked(maps: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(maps).astype(np.uint8))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Packs a run for gpu_segment.py.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--train", default="train_aug", help="split of the training images")
    parser.add_argument("--strong", help="file with the ids of training images whose masks may be learnt")
    parser.add_argument("--val", default="val")
    parser.add_argument("--seeds", action="append", default=[], metavar="NAME=RUN", help="another run's seeds")
    parser.add_argument("--side", type=int, default=500, help="longer side of the stored images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
