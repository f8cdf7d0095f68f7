"""Backbones beside VGG-16 on VOC6 without saliency: validation mAP, seeds, and the time of a pass, features frozen.

    python tests/benchmarks/voc6_backbones.py --data VOC6 --cache cache vgg16=vgg16_features.pt \
        timm/tf_efficientnet_lite0:16=efficientnet-lite0-57934424.pth

A number behind a colon is the output stride, a path behind "=" a state dict; without a path the registry's weights are
taken. Each image runs through each backbone once, at the input size nearest to --size. The features are kept in the
cache, so an interrupted run continues. The head alone is trained, once for each seed, on the same images for all
backbones. Maps are resized to 41 x 41 cells, where the seeds are measured. Theta is chosen on the tune part (this reads
its masks), and the figures are of the report part, as in `voc6_seeds.py`.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from tqdm import tqdm
from voc6_data import GRID, Image, load_images, photo
from voc6_features import image_order, open_array, read_ids
from voc6_maps import ImageMaps, Recipe, head_of, kept_maps, make_maps, validation_map
from voc6_measure import Evidence, by_theta, choose

from ficklenet.backbones import build_backbone
from ficklenet.baselines import divided_by_maximum
from ficklenet.geometry import GridGeometry
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs.training.backbone_weights import load_weights
from storage.images import read_image

VIEW, STAGE = "321", "conv5"  # what `voc6_maps` calls the whole image and the last features
HEADING = "| backbone | cells | images | ms a pass | maps | seed | val mAP | mIoU | several | precision | recall |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="+", help="NAME or NAME:STRIDE, then =WEIGHTS where they are in a file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for features, heads and maps")
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--ids", type=Path, help="a file with the ids of the training images, a line each; else all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(describe("torch", "timm"), HEADING, sep="\n", flush=True)
    for backbone in given.backbones:
        name, _, weights = backbone.partition("=")
        measure(name, weights or "imagenet", given)


def measure(name: str, weights: str, given: argparse.Namespace) -> None:
    """Prints a backbone's rows: the deterministic map and 200 samples by each seed's head."""
    # 1. Features
    architecture, _, stride = name.partition(":")
    network = build_backbone(architecture, int(stride or 8))
    load_weights(network, architecture, weights, "weights")
    geometry, cache = network.geometry, given.cache / name.replace("/", "_").replace(":", "_")
    side = geometry.nearest_input_size(given.size)
    train_ids = given.ids.read_text().split() if given.ids else read_ids(given.data, "train_aug")
    wanted = [*train_ids, *read_ids(given.data, "val")]
    extract(network, given.data, cache, side, wanted)

    # 2. The images that were wanted; the cache may have more
    images = [image for image in load_images(given.data, cache, VIEW) if image.image_id in wanted]
    train, val = ([image for image in images if (image.part == "val") == is_val] for is_val in (False, True))
    tune, report = ([image for image in train if image.part == part] for part in ("tune", "report"))
    seconds = np.nanmedian(np.load(cache / VIEW / "seconds.npy")[[image.index for image in images]])
    facts = f"{name} | {geometry.grid_size(side)} | {len(train)} | {1000 * seconds:.0f}"

    # 3. A head for each seed, its maps, and its rows
    for seed in given.seeds:
        recipe = Recipe(seed, kernel_size=geometry.default_kernel_size)
        head = head_of(recipe, cache, train)
        make = partial(make_maps, head, recipe, cache, size=VIEW, drop_rate=recipe.drop_rate)
        maps = kept_maps(f"{recipe.name}_{VIEW}", cache, train, make)
        score = validation_map(head, recipe, cache, val)
        for kind, evidence_of in (("deterministic", deterministic), ("200 samples", samples)):
            found = choose([by_theta("", partial(evidence_of, maps, geometry))], tune, report).report
            figures = score, found.miou, found.miou_several, found.precision, found.recall
            print(f"| {facts} | {kind} | {seed} | {' | '.join(f'{figure:.3f}' for figure in figures)} |", flush=True)


@torch.inference_mode()
def extract(network: torch.nn.Module, data: Path, cache: Path, side: int, wanted: Sequence[str]) -> None:
    """Fills the cache with the features (K, h, w), float16, of these images, and the seconds that each pass took."""
    order = image_order(data)
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "ids.json").write_text(json.dumps(order))
    grid = network.geometry.grid_size(side)
    kept = open_array(cache / VIEW, STAGE, (len(order), network.out_channels, grid, grid))
    seconds = open_array(cache / VIEW, "seconds", (len(order),), np.float32)
    done = open_array(cache / VIEW, "done", (len(order),), np.uint8)
    network = network.eval().to(memory_format=torch.channels_last)
    place = {image_id: index for index, image_id in enumerate(order)}
    for image_id in tqdm([each for each in wanted if not done[place[each]]], desc=cache.name, mininterval=30):
        pixels = resize_square(read_image(photo(data, image_id)), side)
        inputs = normalize(torch.from_numpy(pixels)[None]).contiguous(memory_format=torch.channels_last)
        started = time.process_time()
        features_KHW = network(inputs)[0]
        seconds[place[image_id]] = time.process_time() - started
        kept[place[image_id]] = features_KHW.half().numpy()
        done[place[image_id]] = 1


def deterministic(maps: dict[int, ImageMaps], geometry: GridGeometry, image: Image) -> Evidence:
    raw_SHW = maps[image.index].raw_CHW[image.labels].astype(np.float32)
    return Evidence.of(on_the_grid(divided_by_maximum(raw_SHW), geometry))


def samples(maps: dict[int, ImageMaps], geometry: GridGeometry, image: Image) -> Evidence:
    found = maps[image.index]
    return Evidence(*(on_the_grid(fold["200"].astype(np.float32), geometry) for fold in (found.maximum, found.mean)))


def on_the_grid(maps_SHW: NDArray[np.float32], geometry: GridGeometry) -> NDArray[np.float32]:
    """Maps of any backbone on the 41 x 41 cells that the seeds are measured at."""
    return geometry.resize_maps(torch.from_numpy(np.ascontiguousarray(maps_SHW)), GRID).numpy()


if __name__ == "__main__":
    main()
