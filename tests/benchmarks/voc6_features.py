"""Features of VOC6's images, computed once and kept on disk: frozen VGG-16, several scales, mirror images.

    python tests/benchmarks/voc6_features.py --data VOC6 --weights vgg16_features.pt --cache cache --sizes 321
    python tests/benchmarks/voc6_features.py --data VOC6 --weights vgg16_features.pt --cache cache \
        --sizes 321m 241 401 --limit 643

A size is the side of the square input; a trailing "m" is the mirror image. An interrupted extraction continues where it
stopped. The size 321 keeps the outputs of stages 3, 4 and 5 (4.3 MB an image), the others stage 5 alone. One thread
takes about 0.8 s for an image at 321. `voc6_seeds.py` reads the cache.

The order of the images is fixed: every second training image, then the validation images, then the other training
images. So ``--limit 643`` is every second training image.
"""

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from tqdm import tqdm

from ficklenet.backbones import backbone_geometry, load_backbone_weights, vgg16
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from storage.images import read_image

STAGES = {"conv3": 256, "conv4": 512, "conv5": 512}  # name -> channels; all at stride 8
SPLITS = ("train_aug", "val")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the set in devkit layout")
    parser.add_argument("--weights", type=Path, required=True, help="state dict of VGG-16's convolutions")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["321"], help='sides of the input; "321m" is the mirror image')
    parser.add_argument("--limit", type=int, help="only the first so many images")
    given = parser.parse_args()
    backbone = vgg16().eval()
    load_backbone_weights(backbone, torch.load(given.weights, weights_only=True))
    backbone = backbone.to(memory_format=torch.channels_last)
    ids = image_order(given.data)
    given.cache.mkdir(parents=True, exist_ok=True)
    (given.cache / "ids.json").write_text(json.dumps(ids))
    for size in given.sizes:
        extract(backbone, given.data, ids, given.limit or len(ids), given.cache / size, size)


def image_order(data: Path) -> list[str]:
    train, val = (read_ids(data, split) for split in SPLITS)
    return [*train[::2], *val, *train[1::2]]


def read_ids(data: Path, split: str) -> list[str]:
    return (data / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()


@torch.inference_mode()
def extract(backbone: torch.nn.Module, data: Path, ids: list[str], limit: int, folder: Path, size: str) -> None:
    """Fills the folder's arrays (images, channels, rows, columns), float16, for images that are not done yet."""
    side, is_mirrored = int(size.removesuffix("m")), size.endswith("m")
    grid = backbone_geometry("vgg16").grid_size(side)
    stages = STAGES if size == "321" else {"conv5": STAGES["conv5"]}
    arrays = {name: open_array(folder, name, (len(ids), channels, grid, grid)) for name, channels in stages.items()}
    done = open_array(folder, "done", (len(ids),), np.uint8)
    for index in tqdm([i for i in range(limit) if not done[i]], desc=size, mininterval=10):
        if done[index]:  # another process was faster
            continue
        pixels = resize_square(read_image(str(data / "JPEGImages" / f"{ids[index]}.jpg")), side)
        if is_mirrored:
            pixels = pixels[:, :, ::-1].copy()
        values = normalize(torch.from_numpy(pixels)[None]).to(memory_format=torch.channels_last)
        for name, (start, stop) in {"conv3": (0, 3), "conv4": (3, 4), "conv5": (4, 5)}.items():
            values = backbone.stages(start, stop)(values)
            if name in arrays:
                arrays[name][index] = values[0].half().contiguous().numpy()
            if name == "conv4" and not torch.isfinite(values).all():
                raise ValueError(f"{ids[index]}: features are not finite.")
        done[index] = 1


def open_array(folder: Path, name: str, shape: tuple[int, ...], dtype: type = np.float16) -> np.memmap:
    """A memory-mapped .npy file, made (sparse) if absent."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.npy"
    if not file.exists():
        temporary = file.with_suffix(f".{os.getpid()}")
        np.lib.format.open_memmap(temporary, "w+", dtype, shape).flush()
        temporary.rename(file)
    return np.lib.format.open_memmap(file, "r+")


if __name__ == "__main__":
    main()
