"""Refined maps on VOC6 without saliency: what learned cells, the walk and the CRF add, over several heads.

    python tests/benchmarks/voc6_refined.py --data VOC6 --cache cache --limit 643 \
        --backbone timm/tf_efficientnet_lite0:16 --weights efficientnet-lite0-57934424.pth

The functions are the product's (`learn_cells.py`, `refine_maps.py`). The features of a frozen backbone are kept, so
that several heads and settings take minutes; an interrupted extraction continues. Maps and stages are resized to
41 x 41 cells. Each row chooses its settings and its threshold on the tune part, which reads masks, and is measured on
the report part.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import numpy as np
import torch
from machine import describe
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from tqdm import tqdm
from voc6_data import CLASS_NAMES, GRID, IGNORE, Image, load_images, photo
from voc6_features import image_order, open_array
from voc6_measure import Choice, Evidence, Labels, Setting, by_theta, choose, seeds_above
from voc6_rows import EvidenceOf, classifier_free_rows, widened
from voc6_seeds import row

from ficklenet.backbones import Backbone, build_backbone
from ficklenet.baselines import divided_by_maximum
from ficklenet.cell_classifier import (
    CellSpec,
    LabelledCells,
    cell_features,
    cell_probabilities,
    choose_cells,
    learn_cells,
)
from ficklenet.crf import LIGHT_AT_MAP_SIZE, refine
from ficklenet.folding import Normalization
from ficklenet.frozen_features import FeatureBatch, train_head
from ficklenet.geometry import GridGeometry
from ficklenet.head import StochasticHead
from ficklenet.localizer import deterministic_maps, localize
from ficklenet.masks import mask_key
from ficklenet.propagation import Likeness, transitions, walk
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs.training.backbone_weights import load_weights
from storage.images import read_image

DROP_RATE, BATCH_SIZE, LEARNING_RATE = 0.9, 10, 1e-3
THETAS = tuple(round(0.05 * step, 2) for step in range(1, 20))
BIASES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4)  # factors of the background's probability before the CRF
WALK_STEPS = 16


@dataclass
class Kept:
    """The kept features of images, by their index: of the whole backbone, and of its last stages on the grid."""

    folder: Path
    geometry: GridGeometry
    affinities: dict[int, csr_matrix] = field(default_factory=dict)

    def whole(self, image: Image) -> torch.Tensor:
        return self._read("whole", image)

    def stages(self, image: Image) -> list[torch.Tensor]:
        names = sorted(file.stem for file in self.folder.glob("stage*.npy"))
        return [self.geometry.resize_maps(self._read(name, image), GRID) for name in names]

    def affinity(self, image: Image) -> csr_matrix:
        if image.index not in self.affinities:
            stages = [stage.numpy() for stage in self.stages(image)]
            self.affinities[image.index] = transitions(stages, image.colours, Likeness())
        return self.affinities[image.index]

    def _read(self, name: str, image: Image) -> torch.Tensor:
        kept = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(np.asarray(kept[image.index], np.float32))


@torch.inference_mode()
def extract(backbone: Backbone, data: Path, folder: Path, ids: Sequence[str], num_images: int, side: int) -> None:
    """Fills the folder's arrays (images, channels, rows, columns), float16, for images that are not done yet."""
    done = open_array(folder / "321", "done", (len(ids),), np.uint8)
    for index in tqdm([i for i in range(num_images) if not done[i]], desc="features", mininterval=10):
        pixels = torch.from_numpy(resize_square(read_image(photo(data, ids[index])), side))[None]
        inputs = normalize(pixels).to(memory_format=torch.channels_last)
        found = {"whole": backbone(inputs)[0]} | {
            f"stage{number}": stage[0] for number, stage in enumerate(backbone.last_stages(inputs))
        }
        for name, values in found.items():
            open_array(folder, name, (len(ids), *values.shape))[index] = values.half().numpy()
        done[index] = 1


@dataclass(frozen=True)
class Maps:
    """One head's maps of one image on the grid, (S, H, W)."""

    deterministic: NDArray[np.float32]
    maximum: NDArray[np.float32]
    mean: NDArray[np.float32]


def trained_head(kept: Kept, images: Sequence[Image], seed: int, num_epochs: int) -> StochasticHead:
    torch.manual_seed(seed)
    head = StochasticHead(kept.whole(images[0]).shape[0], len(CLASS_NAMES), kept.geometry.default_kernel_size)

    def batches(epoch: int) -> Iterator[FeatureBatch]:
        order = np.random.default_rng([seed, epoch]).permutation(len(images))
        for start in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE):
            chosen = [images[place] for place in order[start : start + BATCH_SIZE]]
            yield FeatureBatch(
                torch.stack([kept.whole(image) for image in chosen]),
                torch.stack([image.targets for image in chosen]),
                [mask_key(seed, image.image_id) for image in chosen],
            )

    losses = train_head(head, batches, num_epochs=num_epochs, drop_rate=DROP_RATE, learning_rate=LEARNING_RATE)
    print(f"head {seed}: loss {' '.join(f'{loss:.3f}' for loss in losses)}", flush=True)
    return head.requires_grad_(False)


def maps_of(head: StochasticHead, kept: Kept, image: Image, seed: int) -> Maps:
    features, classes = kept.whole(image)[None], torch.from_numpy(image.labels)[None]
    normalization = Normalization("max")
    sampled = localize(
        features,
        head,
        classes,
        [mask_key(seed, image.image_id)],
        num_samples=200,
        drop_rate=DROP_RATE,
        normalization=normalization,
    )
    plain = deterministic_maps(features, head, classes, drop_rate=DROP_RATE, normalization=normalization)
    found = (plain, sampled.max_BSHW, sampled.mean_BSHW)
    return Maps(*(kept.geometry.resize_maps(maps[0], GRID).numpy() for maps in found))


Probabilities = Callable[[Image], NDArray[np.float32]]  # (1 + S, H, W), of the background and an image's classes


def learned(
    kept: Kept, images: Sequence[Image], labels_of: Callable[[Image], Labels], seed: int, rounds: int
) -> Probabilities:
    """Probabilities by a network of cells that learned these images' labels, as `learn_cells.py` does."""
    generator, parts = np.random.default_rng(seed), []
    for image in images:
        labels = labels_of(image)
        cells = choose_cells(labels, IGNORE, 200, generator)
        present = np.isin(np.arange(len(CLASS_NAMES) + 1), [0, *(image.labels + 1)])
        parts.append(
            (
                cell_features(kept.stages(image)).flatten(1)[:, cells].T.half(),
                torch.from_numpy(labels.ravel()[cells]).long(),
                torch.from_numpy(present).repeat(len(cells), 1),
            )
        )
    cells_of_all = LabelledCells(*(torch.cat(part) for part in zip(*parts, strict=True)))
    spec = CellSpec(cells_of_all.features_NK.shape[1], len(CLASS_NAMES) + 1)
    network = learn_cells(spec, cells_of_all, num_rounds=rounds, num_epochs=8, learning_rate=1e-3, seed=seed)
    found = {
        image.index: cell_probabilities(network, cell_features(kept.stages(image)), image.labels) for image in images
    }
    return lambda image: found[image.index]


def walked(kept: Kept, values_of: Probabilities) -> Probabilities:
    """After the walk; kept, because every threshold looks at them."""
    found: dict[int, NDArray[np.float32]] = {}

    def after(image: Image) -> NDArray[np.float32]:
        if image.index not in found:
            found[image.index] = walk(kept.affinity(image), values_of(image), WALK_STEPS)
        return found[image.index]

    return after


def refined(probabilities_of: Probabilities) -> Setting:
    """The CRF over probabilities, the background's times a factor: the thresholds of this setting."""

    def labels_of(image: Image, biases: Sequence[float]) -> Labels:
        names = np.array([0, *(image.labels + 1)], np.uint8)
        found = []
        for bias in biases:
            scores = probabilities_of(image).copy()
            scores[0] *= bias
            found.append(names[refine(scores / scores.sum(0), image.colours, LIGHT_AT_MAP_SIZE).argmax(axis=0)])
        return np.stack(found)

    return Setting("background times", labels_of, BIASES)


def rows_of_head(seed: int, kept: Kept, images: Sequence[Image], num_epochs: int) -> dict[str, Choice]:
    tune, report = ([image for image in images if image.part == part] for part in ("tune", "report"))
    head = trained_head(kept, images, seed, num_epochs)
    maps = {image.index: maps_of(head, kept, image, seed) for image in images}
    found: dict[str, Choice] = {}

    def measure(name: str, settings: Sequence[Setting]) -> Choice:
        found[name] = choose(settings, tune, report)
        print(seed, row(name, [found[name]]), found[name].setting, found[name].threshold, flush=True)
        return found[name]

    def deterministic(image: Image) -> Evidence:
        return Evidence.of(maps[image.index].deterministic)

    def samples(image: Image) -> Evidence:
        return Evidence(maps[image.index].maximum, maps[image.index].mean)

    def walk_of(evidence_of: EvidenceOf) -> EvidenceOf:
        both = walked(kept, lambda image: np.concatenate([evidence_of(image).values_SHW, evidence_of(image).rank_SHW]))

        def after(image: Image) -> Evidence:
            values, rank = np.split(both(image), 2)
            return Evidence(divided_by_maximum(values), rank)

        return after

    def classes_of(probabilities_of: Probabilities) -> EvidenceOf:
        return lambda image: Evidence.of(probabilities_of(image)[1:])

    for name, evidence_of in (("deterministic", deterministic), ("200 samples", samples)):
        plain = measure(name, [by_theta("", evidence_of, THETAS)])
        spread = walk_of(evidence_of)
        after_walk = measure(f"{name}, walk", [by_theta("", spread, THETAS)])
        if name == "deterministic":
            measure(f"{name}, blurred", widened(evidence_of)["blurred"])
        for start, labelled_by, theta in (
            ("", evidence_of, plain.threshold),
            (", walk", spread, after_walk.threshold),
        ):
            if start and name == "deterministic":
                continue
            labels_of = partial(_labels, labelled_by, theta)
            if not start:
                once = learned(kept, images, labels_of, seed, 1)
                measure(f"{name}, cells learned", [by_theta("", classes_of(once), THETAS)])
            twice = learned(kept, images, labels_of, seed, 2)
            measure(f"{name}{start}, cells learned twice", [by_theta("", classes_of(twice), THETAS)])
            after = walked(kept, twice)
            measure(f"{name}{start}, cells learned twice, walk", [by_theta("", classes_of(after), THETAS)])
            measure(f"{name}{start}, cells learned twice, walk, CRF", [refined(after)])
    return found


def _labels(evidence_of: EvidenceOf, theta: float, image: Image) -> Labels:
    return seeds_above(evidence_of(image), image.labels, theta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the features of one backbone")
    parser.add_argument("--backbone", default="vgg16", help="NAME, or NAME:STRIDE")
    parser.add_argument("--weights", required=True, help="a state dict, or imagenet")
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--limit", type=int, default=643, help="the first so many images")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "voc6_refined.json")
    given = parser.parse_args()
    torch.set_num_threads(1)
    name, _, stride = given.backbone.partition(":")
    backbone = build_backbone(name, int(stride or 8))
    load_weights(backbone, name, given.weights, "--weights")
    kept, ids = Kept(given.cache, backbone.geometry), image_order(given.data)
    given.cache.mkdir(parents=True, exist_ok=True)
    (given.cache / "ids.json").write_text(json.dumps(ids))
    extract(backbone.eval(), given.data, given.cache, ids, given.limit, given.size)  # type: ignore[attr-defined]
    every = load_images(given.data, given.cache)
    images = [image for image in every if image.part != "val" and image.index < given.limit]
    parts = {part: [image for image in images if image.part == part] for part in ("tune", "report")}
    print(describe("torch", "timm", "pydensecrf2"))
    print({part: f"{len(each)}, {sum(i.has_several_classes for i in each)} several" for part, each in parts.items()})
    chosen: dict[str, list[Choice]] = defaultdict(list)
    for label, settings in classifier_free_rows().items():
        chosen[label].append(choose(settings, parts["tune"], parts["report"]))
    for seed in given.seeds:
        for label, choice in rows_of_head(seed, kept, images, given.epochs).items():
            chosen[label].append(choice)
        record = {label: [asdict(one) for one in each] for label, each in chosen.items()}
        given.out.write_text(json.dumps(record, indent=1))
    print("\n| evidence | mIoU | mIoU, several classes | fg precision | fg recall |\n|---|---|---|---|---|")
    for label, choices in chosen.items():
        print(row(label, choices))


if __name__ == "__main__":
    main()
