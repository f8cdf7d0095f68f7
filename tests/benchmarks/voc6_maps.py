"""Classifiers of VOC6 on kept features, and every map that the rows of the table are made of, kept on disk as well.

The head alone is trained, so a classifier takes minutes on one CPU core. Maps are kept per head, in float16.
"""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from voc6_data import CLASS_NAMES, Image, features

from ficklenet.compiled import sample_maps
from ficklenet.folding import Normalization, SampleFold
from ficklenet.frozen_features import FeatureBatch, train_head
from ficklenet.head import StochasticHead
from ficklenet.localizer import expected_evidence
from ficklenet.masks import mask_key
from ficklenet.metrics import average_precision

BATCH_SIZE = 16
NUMS_OF_SAMPLES = (10, 50, 100, 200)
PERCENTILE = Normalization("percentile", 90.0)


@dataclass(frozen=True)
class Recipe:
    """How a head is trained.

    Attributes:
        seed: of its first weights, the order of the images and their masks.
        drop_rate: p.
        sizes: the kept features that it sees, another one in each epoch by turns.
        stages: whose features it sees, side by side.
        kernel_size: s, in cells.
    """

    seed: int
    drop_rate: float = 0.9
    sizes: tuple[str, ...] = ("321",)
    stages: tuple[str, ...] = ("conv5",)
    num_epochs: int = 10
    learning_rate: float = 1e-3
    kernel_size: int = 9

    @property
    def name(self) -> str:
        plain = f"{'+'.join(self.stages)}_{'+'.join(self.sizes)}_p{self.drop_rate:g}_e{self.num_epochs}"
        return f"{plain}_lr{self.learning_rate:g}_s{self.seed}"


def image_features(cache: Path, size: str, stages: Sequence[str], index: int) -> Tensor:
    """float32 (channels, rows, columns), the stages side by side, each scaled to the same mean square."""
    parts = [torch.from_numpy(np.array(features(cache, size, stage)[index])).float() for stage in stages]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part * (parts[-1].square().mean() / part.square().mean()).sqrt() for part in parts])


def head_of(recipe: Recipe, cache: Path, images: Sequence[Image]) -> StochasticHead:
    """The head of a recipe, trained on these images or read from the cache."""
    torch.manual_seed(recipe.seed)
    channels = image_features(cache, recipe.sizes[0], recipe.stages, images[0].index).shape[0]
    head = StochasticHead(channels, len(CLASS_NAMES), recipe.kernel_size)
    file = cache / "heads" / f"{recipe.name}_n{len(images)}.pt"
    if file.exists():
        head.load_state_dict(torch.load(file, weights_only=True))
        return head
    losses = train_head(
        head,
        lambda epoch: _batches(recipe, cache, images, epoch),
        num_epochs=recipe.num_epochs,
        drop_rate=recipe.drop_rate,
        learning_rate=recipe.learning_rate,
    )
    print(f"{recipe.name}: loss {' '.join(f'{loss:.3f}' for loss in losses)}", flush=True)
    file.parent.mkdir(exist_ok=True)
    torch.save(head.state_dict(), file)
    return head


def _batches(recipe: Recipe, cache: Path, images: Sequence[Image], epoch: int) -> Iterator[FeatureBatch]:
    generator = np.random.default_rng([recipe.seed, epoch])
    order = generator.permutation(len(images))
    size = recipe.sizes[epoch % len(recipe.sizes)]
    for start in range(0, len(order), BATCH_SIZE):
        batch = [images[i] for i in order[start : start + BATCH_SIZE]]
        yield FeatureBatch(
            torch.stack([image_features(cache, size, recipe.stages, image.index) for image in batch]),
            torch.stack([image.targets for image in batch]),
            [mask_key(recipe.seed, image.image_id) for image in batch],
        )


@torch.no_grad()
def validation_map(head: StochasticHead, recipe: Recipe, cache: Path, images: Sequence[Image]) -> float:
    """Mean average precision of the expected logits."""
    logits = torch.cat(
        [
            head.expected_logits(image_features(cache, "321", recipe.stages, image.index)[None], recipe.drop_rate)
            for image in images
        ]
    )
    return average_precision(logits, torch.stack([image.targets for image in images]))


@dataclass
class ImageMaps:
    """One image's maps by one head on one view, float16, at the grid of the view.

    Attributes:
        raw_CHW: the expected Grad-CAM of every class, after ReLU, not normalised.
        maximum, mean: folds of the image's classes by name: "200" (samples, divided by the maximum), "200 p90", ...
        votes: theta -> share of the 200 samples above it, each sample divided by its maximum.
    """

    raw_CHW: NDArray[np.float16]
    maximum: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    mean: dict[str, NDArray[np.float16]] = field(default_factory=dict)
    votes: dict[float, NDArray[np.float16]] = field(default_factory=dict)


@torch.no_grad()
def make_maps(
    head: StochasticHead,
    recipe: Recipe,
    cache: Path,
    image: Image,
    size: str,
    *,
    drop_rate: float,
    nums_of_samples: Sequence[int] = (200,),
    vote_thetas: Sequence[float] = (),
    with_percentile: bool = False,
) -> ImageMaps:
    """All maps of one image that the rows need; mirror images come back the right way round."""
    features_KHW = image_features(cache, size, recipe.stages, image.index)
    grid = features_KHW.shape[1], features_KHW.shape[2]
    affinity_CDV = head.affinity(features_KHW[None], torch.arange(len(CLASS_NAMES))[None])[0]
    made = ImageMaps(_kept(expected_evidence(affinity_CDV[None], grid, drop_rate)[0].relu(), size))
    if not nums_of_samples:
        return made
    samples_SNV = torch.from_numpy(
        sample_maps(
            affinity_CDV[torch.from_numpy(image.labels)].numpy(),
            mask_key(recipe.seed, image.image_id),
            range(max(nums_of_samples)),
            grid=grid,
            drop_rate=drop_rate,
        )
    )
    normalizations = {"": Normalization("max")} | ({" p90": PERCENTILE} if with_percentile else {})
    for suffix, normalization in normalizations.items():
        scaled_NSHW = normalization.apply(samples_SNV.unflatten(2, grid)).transpose(0, 1)
        for count in nums_of_samples:
            fold = SampleFold.of(scaled_NSHW[:count])
            made.maximum[f"{count}{suffix}"] = _kept(fold.maximum, size)
            made.mean[f"{count}{suffix}"] = _kept(fold.mean, size)
        if not suffix:
            made.votes = {theta: _kept((scaled_NSHW > theta).float().mean(0), size) for theta in vote_thetas}
    return made


def kept_maps(
    name: str, cache: Path, images: Sequence[Image], make: Callable[[Image], ImageMaps]
) -> dict[int, ImageMaps]:
    """The maps of these images by their index, read from the cache or made and kept there under a name."""
    file = cache / "maps" / f"{name}_n{len(images)}.pickle"
    if file.exists():
        return pickle.loads(file.read_bytes())
    made = {image.index: make(image) for image in tqdm(images, desc=name, mininterval=10)}
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(pickle.dumps(made))
    return made


def _kept(maps_SHW: Tensor, size: str) -> NDArray[np.float16]:
    return (maps_SHW.flip(-1) if size.endswith("m") else maps_SHW).half().numpy()
