"""The length of a training: the number of epochs and steps, and the least number of steps.

The number of steps decides how much a network learns. 15 epochs of VOC's 10,582 images are 8,000 steps; 15 epochs of 32
images are 45. So a training on a small set gets more epochs than configured, until it has `min_steps` steps. Learning
rates and validations that are configured in epochs are then spread over the larger number of epochs.
"""

import math
from dataclasses import dataclass
from typing import Any

from cluster.words import plural
from ficklenet.batches import steps_per_epoch
from jobs.run.config_keys import ClassifierConfig, Config
from jobs.run.steps import BY_NAME
from jobs.training.image_list import image_list
from jobs.training.segmentation_data import training_images
from storage.manifest import Manifest


@dataclass(frozen=True)
class Plan:
    """The length of a training, and how often it validates and saves a checkpoint.

    Attributes:
        name: the step.
        section: its section of the configuration, for errors.
        configured_epochs: the configured number of epochs; `epochs` is the number that is trained.
        min_steps: the least number of steps.
        configured_validate_every: configured epochs between validations.
        max_skipped_fraction: if a larger share of the images is unreadable, the training stops at the end of an epoch.
    """

    name: str
    section: str
    num_images: int
    batch_size: int
    configured_epochs: int
    min_steps: int
    configured_validate_every: int
    checkpoint_minutes: float
    max_skipped_fraction: float

    @property
    def epoch_steps(self) -> int:
        return steps_per_epoch(self.num_images, self.batch_size)

    @property
    def epochs(self) -> int:
        """The number of epochs that are trained: as configured, or more to reach `min_steps`."""
        return max(self.configured_epochs, math.ceil(self.min_steps / self.epoch_steps))

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch_steps

    @property
    def is_raised(self) -> bool:
        """Whether more epochs are trained than are configured."""
        return self.epochs > self.configured_epochs

    @property
    def stretch(self) -> int:
        """How many epochs are trained for each configured one, rounded up."""
        return math.ceil(self.epochs / self.configured_epochs)

    @property
    def validate_every(self) -> int:
        """The number of epochs between validations."""
        return self.configured_validate_every * self.stretch

    @property
    def step_images(self) -> int:
        """The number of images in a step, of all workers together; a set smaller than a batch is one step."""
        return min(self.batch_size, self.num_images)

    @property
    def epoch_images(self) -> int:
        """The number of images in an epoch, which skips random images that do not fill a batch."""
        return min(self.num_images, self.epoch_steps * self.batch_size)

    def schedule_epoch(self, step: int) -> int:
        """The configured epoch that a global step corresponds to, for schedules in epochs."""
        return step * self.configured_epochs // self.steps

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The entry of a fingerprint beside the configured epochs and batch size: the epochs, if they are raised."""
        return {"raised_epochs": self.epochs} if self.is_raised else {}

    @property
    def epoch_in_words(self) -> str:
        """An epoch in words, as '1 step of 5 images (each epoch leaves out 4 other images)'."""
        left_out = self.num_images - self.epoch_images
        others = "another image" if left_out == 1 else f"{left_out:,} other images"
        note = f" (each epoch leaves out {others})" if left_out else ""
        return f"{plural(self.epoch_steps, 'step')} of {plural(self.step_images, 'image')}{note}"

    @property
    def raise_in_words(self) -> str:
        """Why more epochs are trained than configured, and how to change this; '' if they are not."""
        if not self.is_raised:
            return ""
        return (
            f"{plural(self.num_images, 'image')} in batches of {self.step_images}: "
            f"{plural(self.configured_epochs, 'epoch')} would be "
            f"{plural(self.configured_epochs * self.epoch_steps, 'step')}, so {self.epochs:,} epochs = "
            f"{self.steps:,} steps are trained. To change this, set {self.section}.min_steps (now "
            f"{self.min_steps:,}); with 1 the configured epochs are trained."
        )


def training_plan(step: str, config: Config, num_images: int) -> Plan:
    """The length of a step's training; the step is "classifier", "segmenter" or "retrained".

    A segmentation network is validated once, at the end.
    """
    section = BY_NAME[step].section
    settings = getattr(config, section)
    return Plan(
        name=step,
        section=section,
        num_images=num_images,
        batch_size=settings.batch_size,
        configured_epochs=settings.epochs,
        min_steps=settings.min_steps,
        configured_validate_every=(
            settings.validate_every if isinstance(settings, ClassifierConfig) else settings.epochs
        ),
        checkpoint_minutes=settings.checkpoint_minutes,
        max_skipped_fraction=config.images.max_skipped_fraction,
    )


def planned_training(step: str, config: Config, manifest: Manifest) -> Plan:
    """The length of a step's training on the images that the manifest has now."""
    if step == "classifier":
        images = image_list(manifest, config.data.train_splits, without=config.data.val_splits)
    else:
        images = training_images(manifest, config)
    return training_plan(step, config, len(images))
