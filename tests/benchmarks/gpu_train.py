"""Trains the classifier without Ray, on images that are already decoded: speed, memory, and a checkpoint to take away.

    python tests/benchmarks/gpu_train.py                                    # drawn scenes, VGG-16 at 321 x 321
    python tests/benchmarks/gpu_train.py --data voc.pt --weights vgg16.pt --epochs 15 --out model.pt

Needs the project's packages except Ray. The step, the order of the images, their crops, their masks and the processes
that crop are those of `jobs/train_ficklenet.py`, and --out gets the same file that it writes. --data is a
file that `torch.save` wrote, of plain values and tensors:

    images       list of uint8 RGB tensors (H, W, 3), of any sizes
    targets      (N, C) tensor, 1 where the image has the class
    image_ids    list of N strings
    class_names  list of C strings
    validation   list of N booleans: images not trained on, for the mean average precision
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the project need not be installed

import torch
from machine import describe
from torch import Tensor
from torch.utils.data import Dataset

from ficklenet.backbones import BACKBONE_NAMES, load_backbone_weights
from ficklenet.batches import addressed_batches, keyed_generator, steps_per_epoch
from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier
from ficklenet.classifier_training import learning_rate_at, make_optimizer, set_learning_rate, training_step
from ficklenet.drawing import DRAWN_CLASS_NAMES, draw_scene
from ficklenet.masks import mask_key
from ficklenet.metrics import average_precision
from ficklenet.resampling import resize_square, training_crop
from ficklenet.transforms import normalize
from jobs.training.training_data import load_batches, loader_processes

NUM_DRAWN, NUM_DRAWN_VALIDATION = 300, 60
REPORT_EVERY = 20  # steps


def main() -> None:
    options = parse_options()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU"
    print(f"{name}; {describe('torch', 'torchvision')}")
    data = torch.load(options.data, weights_only=True) if options.data else drawn_data()
    classifier = build(options, tuple(data["class_names"])).to(device).to(memory_format=torch.channels_last)
    metrics = train(options, classifier, data, device)
    if options.out:
        options.out.write_bytes(pack_classifier(classifier, {"metrics": metrics}))
        print(f"wrote {options.out}")


def build(options: argparse.Namespace, class_names: tuple[str, ...]) -> FickleNet:
    torch.manual_seed(options.seed)
    spec = ClassifierSpec(options.backbone, class_names, options.kernel_size, options.drop_rate, options.size)
    classifier = FickleNet(spec)
    if options.weights:
        load_backbone_weights(classifier.backbone, torch.load(options.weights, weights_only=True))
    classifier.backbone.freeze_stages(options.frozen_stages)
    return classifier


def train(
    options: argparse.Namespace, classifier: FickleNet, data: dict[str, Any], device: torch.device
) -> dict[str, float]:
    """Trains for all epochs, prints a line for each; the metrics of the last."""
    precision = getattr(torch, options.precision)
    optimizer = make_optimizer(classifier, learning_rate=options.learning_rate, backbone_factor=options.backbone_factor)
    held_out = data.get("validation", [False] * len(data["images"]))
    training = [number for number, is_held_out in enumerate(held_out) if not is_held_out]
    crops = Crops(data, training, options.size, options.seed)
    epoch_steps = steps_per_epoch(len(training), options.batch)
    metrics: dict[str, float] = {}
    batches = load(crops, range(options.epochs * epoch_steps), options, device)
    for epoch in range(options.epochs):
        set_learning_rate(optimizer, learning_rate_at(epoch, options.learning_rate, options.halve_every))
        started, total = time.monotonic(), torch.zeros((), device=device)
        for step in range(epoch_steps):
            images, targets, keys = next(batches)
            total += training_step(
                classifier,
                optimizer,
                images.to(device, non_blocking=True),
                targets.to(device, non_blocking=True),
                keys,
                epoch,
                torch.ones(len(keys), device=device),
                micro_batch_size=options.micro_batch,
                precision=precision,
            )
            if options.steps and epoch * epoch_steps + step + 1 == options.steps:
                break
        loss = float(total) / (step + 1)  # waits for the device
        speed = (step + 1) * options.batch / (time.monotonic() - started)
        metrics = {"epoch": epoch + 1, "loss": loss, "images_per_second": speed}
        metrics |= validate(classifier, data, held_out, options.batch, precision)
        memory = f", peak {torch.cuda.max_memory_allocated() / 2**20:,.0f} MiB" if device.type == "cuda" else ""
        print(", ".join(f"{name} {value:.4g}" for name, value in metrics.items()) + memory, flush=True)
        if options.steps and (epoch + 1) * epoch_steps >= options.steps:
            break
    return metrics


class Crops(Dataset):
    """Augmented images by (epoch, position), as in the job."""

    def __init__(self, data: dict[str, Any], numbers: Sequence[int], size: int, seed: int) -> None:
        self.data, self.numbers, self.size, self.seed = data, numbers, size, seed

    def __getitem__(self, address: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, position = address
        number = self.numbers[position]
        image_id = self.data["image_ids"][number]
        generator = keyed_generator(self.seed, "augmentation", epoch, image_id)
        pixels = training_crop(self.data["images"][number].numpy(), self.size, generator)
        return torch.from_numpy(pixels), self.data["targets"][number], mask_key(self.seed, image_id)


def load(
    crops: Crops, steps: range, options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    addresses = addressed_batches(steps, len(crops.numbers), options.batch, options.seed, rank=0, world_size=1)
    num_processes = loader_processes(options.loaders, device, workers_on_node=1)
    return load_batches(crops, addresses, collate, num_processes=num_processes, device=device)


def collate(examples: list[tuple[Tensor, Tensor, int]]) -> tuple[Tensor, Tensor, list[int]]:
    images, targets, keys = zip(*examples, strict=True)
    return torch.stack(images), torch.stack(targets), list(keys)


@torch.inference_mode()
def validate(
    classifier: FickleNet, data: dict[str, Any], held_out: list[bool], batch: int, precision: torch.dtype
) -> dict[str, float]:
    """Mean average precision of the expected logits; {} without held-out images."""
    numbers = [number for number, is_held_out in enumerate(held_out) if is_held_out]
    if not numbers:
        return {}
    device, size = next(classifier.parameters()).device, classifier.spec.input_size
    logits = []
    for start in range(0, len(numbers), batch):
        chosen = numbers[start : start + batch]
        images = torch.stack([torch.from_numpy(resize_square(data["images"][n].numpy(), size)) for n in chosen])
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits.append(classifier.expected_logits(normalize(images.to(device))).float().cpu())
    return {"val_map": average_precision(torch.cat(logits), data["targets"][numbers])}


def drawn_data() -> dict[str, Any]:
    """The demo's drawn scenes."""
    scenes = [draw_scene(number) for number in range(NUM_DRAWN + NUM_DRAWN_VALIDATION)]
    targets = torch.zeros(len(scenes), len(DRAWN_CLASS_NAMES))
    for number, scene in enumerate(scenes):
        targets[number, list(scene.labels)] = 1
    return {
        "images": [torch.from_numpy(scene.image) for scene in scenes],
        "targets": targets,
        "image_ids": [f"scene_{number:04d}" for number in range(len(scenes))],
        "class_names": list(DRAWN_CLASS_NAMES),
        "validation": [number >= NUM_DRAWN for number in range(len(scenes))],
    }


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Trains the classifier on decoded images, without Ray.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="decoded images; drawn scenes unless given")
    parser.add_argument("--weights", type=Path, help="state dict of the backbone, random unless given")
    parser.add_argument("--out", type=Path, help="where the classifier goes")
    parser.add_argument("--backbone", choices=BACKBONE_NAMES, default="vgg16")
    parser.add_argument("--size", type=int, default=321, help="side of the square input")
    parser.add_argument("--kernel-size", type=int, default=9)
    parser.add_argument("--drop-rate", type=float, default=0.9)
    parser.add_argument("--frozen-stages", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=0, help="stop after so many; 0: after the epochs")
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--micro-batch", type=int, default=0, help="images on the device at once; 0: the batch")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--backbone-factor", type=float, default=1.0)
    parser.add_argument("--halve-every", type=int, default=10)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--loaders", type=int, help="processes that crop; by default as many as in the job")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
