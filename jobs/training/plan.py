"""How long a training is: epochs, steps, and the floor below which no number of epochs goes.

A network learns by steps, not by epochs. 15 epochs of VOC's 10,582 images are 8,000 steps; of 32 images they are 45. So
a training of a small set gets more epochs than are configured, until it has `min_steps` steps. The learning rate, the
validations and the checkpoints are stretched with it.
"""

import math
from dataclasses import dataclass
from typing import Any

from cluster.words import plural
from ficklenet.batches import steps_per_epoch
from jobs.run.config_keys import ClassifierConfig, Config
from jobs.run.steps import BY_NAME


@dataclass(frozen=True)
class Plan:
    """How long a training is, and how often what happens.

    Attributes:
        name: of the step.
        section: of the configuration, named in errors.
        configured_epochs: how many are asked for; `epochs` is how many are trained.
        min_steps: the floor.
        configured_validate_every: in configured epochs.
        max_skipped_fraction: of the images; more unreadable ones stop the training at an epoch's end.
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
        """How many are trained: as configured, or more to reach the floor."""
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
        """How many epochs stand for a configured one, rounded up."""
        return math.ceil(self.epochs / self.configured_epochs)

    @property
    def validate_every(self) -> int:
        """Epochs from one validation to the next."""
        return self.configured_validate_every * self.stretch

    @property
    def step_images(self) -> int:
        """Images of a step, over all workers; a set that is smaller than a batch is a step."""
        return min(self.batch_size, self.num_images)

    @property
    def epoch_images(self) -> int:
        """How many images an epoch sees; the others fill no batch, and are random ones in each epoch."""
        return min(self.num_images, self.epoch_steps * self.batch_size)

    def schedule_epoch(self, step: int) -> int:
        """The configured epoch that a global step stands for: schedules in epochs follow it."""
        return step * self.configured_epochs // self.steps

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What a fingerprint holds beside the configured epochs and batch size: the epochs, where they are raised."""
        return {"raised_epochs": self.epochs} if self.is_raised else {}

    @property
    def epoch_in_words(self) -> str:
        """'1 step of 5 images (4 random images are skipped in each epoch)'."""
        left_out = self.num_images - self.epoch_images
        verb = "is" if left_out == 1 else "are"
        note = f" ({plural(left_out, 'random image')} {verb} skipped in each epoch)" if left_out else ""
        return f"{plural(self.epoch_steps, 'step')} of {plural(self.step_images, 'image')}{note}"

    @property
    def raise_in_words(self) -> str:
        """Why more epochs are trained than are configured, and how to change it; '' where they are not."""
        if not self.is_raised:
            return ""
        return (
            f"{plural(self.num_images, 'image')} in batches of {self.step_images}: "
            f"{plural(self.configured_epochs, 'epoch')} would be "
            f"{plural(self.configured_epochs * self.epoch_steps, 'step')}; trains {self.epochs:,} epochs = "
            f"{self.steps:,} steps. Set {self.section}.min_steps (now {self.min_steps:,}) to change it; 1 trains the "
            "epochs that are configured."
        )


def training_plan(step: str, config: Config, num_images: int) -> Plan:
    """How long the training of a step is: "classifier", "segmenter" or "retrained".

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
