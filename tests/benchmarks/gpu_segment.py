"""Trains and scores the segmentation network without Ray, from one file of images, seeds and masks; made for a bare GPU
machine.

    python tests/benchmarks/segmentation_pack.py --run R --out pack.pt             # where the run is
    python tests/benchmarks/gpu_segment.py train --pack pack.pt --weights vgg16_features.pt --out out
    python tests/benchmarks/gpu_segment.py score --pack pack.pt --out out           # where pydensecrf is

`train` needs torch, torchvision, its Pillow and numpy. It trains each asked supervision with each seed, prints mIoU on
the validation images at image size without CRF, and keeps their logits; `score` adds the CRF. Supervisions: weak
(seeds), semi (also the masks of the strong images), full (all masks and nothing else, the upper bound). The steps are
those of jobs/train_segmentation.py, the loop is not: all images lie on the device.

On a CPU `--frozen-stages 4` trains the last stage and the head alone, on features of the other stages that are computed
once, for each image and its mirror image; with `--size 161 --dilations 6` everything is half as large.
"""

import argparse
import io
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

from functools import partial

import numpy as np
import torch
from machine import describe
from PIL import Image
from torch import Tensor, nn

from ficklenet.backbones import LayerChain, build_backbone, load_backbone_weights
from ficklenet.batches import batch_indices, keyed_generator, steps_per_epoch
from ficklenet.classifier_training import set_learning_rate
from ficklenet.label_image import label_image
from ficklenet.metrics import confusion_matrix, label_metrics
from ficklenet.resampling import resize_square
from ficklenet.segmentation_inference import enlarged_probabilities, input_sizes, predict_grid
from ficklenet.segmentation_training import (
    LossWeights,
    SegmentationBatch,
    learning_rate_at,
    make_optimizer,
    segmentation_loss,
)
from ficklenet.segmenter import Segmenter, SegmenterSpec, load_fc_weights
from ficklenet.transforms import normalize

IGNORE = 255
LOSS_WEIGHTS = {"weak": LossWeights(), "semi": LossWeights(), "full": LossWeights(0, 0, 1)}


def main() -> None:
    options = parse_options()
    pack = torch.load(options.pack, weights_only=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.command == "train":
        name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
        print(f"{name}; {describe('torch', 'torchvision')}; {len(pack['train']['images'])} images", flush=True)
        data = Data(pack, options)
        frozen = FrozenFeatures(data.images, options) if options.frozen_stages and not options.every_pass else None
        for seed in options.random_seeds:  # first one of each kind
            for supervision in options.supervision:
                for seeds in options.seeds if supervision != "full" else options.seeds[:1]:
                    train_one(pack, data, frozen, supervision, seeds, seed, options)
    else:
        for file in sorted(options.out.glob("*.npz")):
            report(file.stem, pack, np.load(file)["logits"], use_crf=True)


class Data:
    """All training images on the device, at the network's size."""

    def __init__(self, pack: dict[str, Any], options: argparse.Namespace) -> None:
        train, device = pack["train"], torch.device(options.device)
        squares = [resize_square(pixels(image), options.size) for image in train["images"]]
        self.images = torch.from_numpy(np.stack(squares)).to(device)
        self.truth = train["truth"].long().to(device)
        self.strong = train["strong"].to(device)
        self.seeds = {name: seeds.long().to(device) for name, seeds in train["seeds"].items()}
        labels = train["labels"].to(device)
        self.present = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1)

    def batch(self, chosen: torch.Tensor, mirrored: torch.Tensor, supervision: str, seeds: str) -> SegmentationBatch:
        """Some images, some of them mirrored, with what the supervision may see."""
        truth = self.truth[chosen]
        if supervision != "full":
            may_see = self.strong[chosen] & (supervision == "semi")
            truth = truth.where(may_see[:, None, None], IGNORE)
        given = (self.images[chosen], self.seeds[seeds][chosen], truth)
        images, seeds_BHW, truth = (
            values.flip(-1).where(mirrored.view(-1, *[1] * (values.ndim - 1)), values) for values in given
        )
        return SegmentationBatch(
            images, seeds_BHW, self.present[chosen], truth, torch.ones(len(chosen), device=images.device)
        )


class FrozenFeatures:
    """What the frozen stages, the same in every training, make of all images and of their mirror images."""

    @torch.no_grad()
    def __init__(self, images: Tensor, options: argparse.Namespace) -> None:
        backbone = build_backbone(options.backbone)
        if not isinstance(backbone, LayerChain) or not options.weights:
            raise SystemExit(
                "--frozen-stages: give a backbone that is a chain of layers (vgg16, small), and --weights."
            )
        load_backbone_weights(backbone, torch.load(options.weights, weights_only=True))
        first = backbone.stages(0, options.frozen_stages).to(options.device).to(memory_format=torch.channels_last)
        started, dtype = time.monotonic(), getattr(torch, options.precision)
        self.of_mirrored = []  # of the images, then of their mirror images
        for given in (images, images.flip(-1)):
            features = []
            for portion in given.split(options.batch):
                with torch.autocast(options.device, dtype, enabled=dtype != torch.float32):
                    inputs = normalize(portion).contiguous(memory_format=torch.channels_last)
                    features.append(first(inputs).to(dtype))
            self.of_mirrored.append(torch.cat(features))
        print(f"features of {options.frozen_stages} frozen stages: {time.monotonic() - started:.0f} s", flush=True)

    def batch(self, chosen: Tensor, mirrored: Tensor) -> Tensor:
        plain, flipped = (features[chosen] for features in self.of_mirrored)
        return flipped.where(mirrored.view(-1, 1, 1, 1), plain).contiguous(memory_format=torch.channels_last)


class LearningPart(nn.Module):
    """What learns of a network whose first stages are frozen; sees their features in place of images."""

    def __init__(self, model: Segmenter, num_frozen: int) -> None:
        super().__init__()
        self.stages = model.backbone.stages(num_frozen, model.backbone.num_stages)
        self.head, self.spec = model.head, model.spec
        self.features = torch.empty(0)

    def forward(self, _: Tensor) -> Tensor:
        return self.head(self.stages(self.features))


def train_one(
    pack: dict[str, Any],
    data: Data,
    frozen: FrozenFeatures | None,
    supervision: str,
    seeds: str,
    seed: int,
    options: argparse.Namespace,
) -> None:
    """One training, its score and its logits."""
    name = f"{supervision}-{seeds}-{seed}" if supervision != "full" else f"full-{seed}"
    torch.manual_seed(seed)
    spec = SegmenterSpec(options.backbone, tuple(pack["class_names"]), tuple(options.dilations), options.size)
    model = Segmenter(spec)
    if options.weights:
        given = torch.load(options.weights, weights_only=True)
        load_backbone_weights(model.backbone, given)
        load_fc_weights(model.head, given)
    model.backbone.freeze_stages(options.frozen_stages)
    model.to(options.device).to(memory_format=torch.channels_last).train()
    learning = LearningPart(model, options.frozen_stages) if frozen else model
    optimizer = make_optimizer(model, learning_rate=options.learning_rate)
    num_images, precision = len(data.images), getattr(torch, options.precision)
    per_epoch = steps_per_epoch(num_images, options.batch)
    num_steps, started = options.epochs * per_epoch, time.monotonic()
    for step in range(num_steps):
        chosen = torch.tensor(batch_indices(step, num_images, options.batch, seed), device=options.device)
        coins = keyed_generator(seed, "mirror", step).random(len(chosen)) < 0.5
        mirrored = torch.from_numpy(coins).to(options.device)
        batch = data.batch(chosen, mirrored, supervision, seeds)
        if frozen:
            learning.features = frozen.batch(chosen, mirrored)
        set_learning_rate(optimizer, learning_rate_at(step, num_steps, options.learning_rate))
        losses = segmentation_loss(learning, batch, LOSS_WEIGHTS[supervision], precision=precision)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        if (step + 1) % (options.report_every * per_epoch) == 0:
            shown = ", ".join(f"{key} {value.item():.3f}" for key, value in losses.items())
            print(f"{name}: epoch {(step + 1) // per_epoch} of {options.epochs} ({shown})", flush=True)
    print(f"{name}: {num_steps} steps in {time.monotonic() - started:.0f} s", flush=True)
    logits = predict(model.eval(), pack, options)
    np.savez_compressed(options.out / f"{name}.npz", logits=logits.astype(np.float16))
    report(name, pack, logits, use_crf=False)


def predict(model: Segmenter, pack: dict[str, Any], options: argparse.Namespace) -> np.ndarray:
    """Probabilities of the validation images on the grid, (N, L, h, w)."""
    sizes, precision = input_sizes(options.size, options.scales), getattr(torch, options.precision)
    grids = []
    for image in pack["val"]["images"]:
        inputs = [torch.from_numpy(resize_square(pixels(image), size))[None].to(options.device) for size in sizes]
        grids.append(predict_grid(model, inputs, mirror=options.mirror, precision=precision)[0].cpu().numpy())
    return np.stack(grids)


def report(name: str, pack: dict[str, Any], logits: np.ndarray, *, use_crf: bool) -> None:
    """Prints a line of JSON: mIoU and IoU at image size."""
    names = pack["class_names"]
    matrix = np.zeros((len(names) + 1, len(names) + 2), np.int64)
    for grid, image, truth in zip(logits, pack["val"]["images"], pack["val"]["truth"], strict=True):
        labels = label_image(partial(enlarged_probabilities, grid), pixels(image), use_crf=use_crf)
        matrix += confusion_matrix(truth.numpy(), labels, len(names), IGNORE)
    figures = label_metrics(matrix)
    iou = dict(zip(["background", *names], (round(value, 4) for value in figures.iou), strict=True))
    print(json.dumps({"name": name, "crf": use_crf, "val_miou": round(figures.mean_iou, 4), "iou": iou}), flush=True)


def pixels(jpeg: torch.Tensor) -> np.ndarray:
    """The bytes of a JPEG file as uint8 RGB (H, W, 3)."""
    return np.array(Image.open(io.BytesIO(jpeg.numpy().tobytes())))


def parse_options() -> argparse.Namespace:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(
        description="The segmentation network on a bare GPU machine.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("command", choices=["train", "score"])
    parser.add_argument("--pack", type=Path, required=True, help="file of segmentation_pack.py")
    parser.add_argument("--out", type=Path, required=True, help="folder of the logits")
    parser.add_argument("--weights", type=Path, help="state dict of the backbone")
    parser.add_argument("--supervision", nargs="+", choices=list(LOSS_WEIGHTS), default=list(LOSS_WEIGHTS))
    parser.add_argument("--seeds", nargs="+", default=["seeds"], help="names of seed sets in the pack")
    parser.add_argument("--random-seeds", type=int, nargs="+", default=[0], help="one training of each kind with each")
    parser.add_argument("--every-pass", action="store_true", help="run the frozen stages in every step all the same")
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--report-every", type=int, default=5, help="epochs from one line to the next")
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--frozen-stages", type=int, default=0, help="of the backbone; computed once for all trainings")
    parser.add_argument("--dilations", type=int, nargs="+", default=[12], help="12: LargeFOV; 6 12 18 24: ASPP")
    parser.add_argument("--size", type=int, default=321)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0], help="of the inputs in inference")
    parser.add_argument("--mirror", action="store_true", help="average over mirrored images in inference")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if on_gpu else "cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16" if on_gpu else "float32")
    return parser.parse_args()


if __name__ == "__main__":
    main()
