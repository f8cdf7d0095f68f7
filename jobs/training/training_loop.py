"""The loop of a training: global steps, synchronisation of the workers, checkpoints, and the metrics of an epoch.

The `Learner` defines the computation of a step, the validation and the file of a model. The number of a step decides
which images it uses, so a training can continue from any step on any number of workers.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from cluster.training_context import Metrics, TrainingContext
from cluster.words import plural
from ficklenet.classifier_training import set_learning_rate
from ficklenet.training_state import is_finite, pack_training, unpack_training
from jobs.training.plan import Plan
from storage.errors import MISSING

COMPARE_EVERY = 10
"""Number of steps between synchronisations of the workers, which check the losses and save checkpoints."""


class Batch(Protocol):
    """The input of a step."""

    @property
    def skipped(self) -> dict[str, str]:
        """The reasons why images could not be read, by id; these images have weight 0 in the batch."""


B_contra = TypeVar("B_contra", bound=Batch)


@dataclass(frozen=True)
class Learner(Generic[B_contra]):
    """The model, and the functions that train, validate and save it.

    Attributes:
        model: the model without the wrapper of distributed training.
        optimizer: its parameter groups have factors, as in ``ficklenet.classifier_training.make_optimizer``.
        learning_rate: returns the learning rate of a global step, before the groups' factors.
        step: makes one step with this worker's share of the batch and returns the detached loss; the mean over the
            workers is the loss of the batch.
        validate: returns the metrics on the validation images, the same on every worker; {} without such images.
        score: the name of the metric that decides which epoch is the best.
        write: writes the model and the epoch's metrics under a name; called on rank 0.
        pass_seconds: returns the time since its last call of the passes through a frozen backbone whose features are
            kept; None if none are kept.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    step: Callable[[B_contra, int], Tensor]
    validate: Callable[[], dict[str, float]]
    score: str
    write: Callable[[str, Metrics], None]
    pass_seconds: Callable[[], float] | None = None


@dataclass
class Progress:
    """The progress of a training; part of every checkpoint.

    Attributes:
        next_step: the next global step.
        loss: the sum over the steps of the current epoch so far.
        best: the highest score so far.
        skipped: the reasons why images could not be read, by id.
        reported: how many of these, in this order, earlier epochs have reported.
    """

    next_step: int = 0
    loss: float = 0.0
    best: float | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    reported: int = 0


def run_training(
    context: TrainingContext,
    plan: Plan,
    learner: Learner[B_contra],
    batches_of: Callable[[range], Iterable[B_contra]],
) -> None:
    """Trains from the latest checkpoint, or from the start, to the last epoch.

    All reports have `step`, `losses` (pairs [step, mean loss up to it]), `learning_rate`, `images_per_second` and the
    number of `workers`. Reports at the end of an epoch also have `epoch`, its mean `loss`, the `seconds` since the last
    such report or the start, and the metrics of the validation with its `validation_seconds`. If features of a frozen
    backbone are kept, they have the `backbone_seconds` in which these were computed. If images were skipped, they have
    `skipped` (the number so far) and `skipped_images`: the newly skipped images with reasons, in the last epoch all of
    them. `best.pt` is written when no earlier validation was better, and `last.pt` at the end, each before the
    checkpoint that includes it.

    Args:
        batches_of: yields this worker's share of each of the given global steps, in order.

    Raises:
        ValueError: the checkpoint is damaged, the loss or a weight is no longer a number, or too many images could not
            be read.
    """
    progress, checkpoint = Progress(), context.latest()
    if checkpoint is not None:
        try:
            progress = Progress(**unpack_training(checkpoint, learner.model, learner.optimizer))
        except ValueError as error:
            raise ValueError(
                f"{plan.name}: its latest checkpoint is damaged: {error}. Start over with --restart {plan.name}."
            ) from error
    steps = range(progress.next_step, plan.steps)
    stretch, loss, skipped = _Stretch(), torch.zeros((), device=context.device), dict[str, str]()
    num_steps, kept_at, ended_at = 0, time.monotonic(), time.monotonic()
    for step, batch in zip(steps, batches_of(steps), strict=True):
        # 1. Make a step
        set_learning_rate(learner.optimizer, learner.learning_rate(step))
        loss += learner.step(batch, step)
        skipped |= batch.skipped
        num_steps += 1
        epoch, step_in_epoch = divmod(step + 1, plan.epoch_steps)  # finished epochs, and further steps
        if step_in_epoch % COMPARE_EVERY:
            continue

        # 2. Synchronise the workers
        notes = context.gather((float(loss), skipped, time.monotonic() - kept_at))
        mean_loss = sum(share for share, _, _ in notes) / len(notes)
        _require_finite(plan, step, mean_loss, learner.model)
        progress.loss += mean_loss
        progress.next_step = step + 1
        for _, unread, _ in notes:
            progress.skipped |= unread
        stretch.add(step + 1, num_steps, mean_loss)
        loss, skipped, num_steps = torch.zeros_like(loss), {}, 0
        is_due = notes[0][2] >= 60 * plan.checkpoint_minutes  # by the clock of rank 0
        if step_in_epoch and not is_due:
            continue

        # 3. Report and save a checkpoint, with metrics at the end of an epoch. Very short epochs share a checkpoint
        metrics = stretch.metrics(plan.step_images)
        metrics |= {"learning_rate": learner.learning_rate(step), "workers": context.world_size}
        if step_in_epoch == 0:
            metrics |= _finish_epoch(context, plan, learner, progress, epoch)
            metrics["seconds"], ended_at = time.monotonic() - ended_at, time.monotonic()
        state = None
        if is_due or epoch % plan.stretch == 0 or epoch == plan.epochs:
            kept_at = time.monotonic()
            state = pack_training(learner.model, learner.optimizer, asdict(progress)) if context.rank == 0 else None
        context.report(metrics, state)
        stretch = _Stretch()


def _finish_epoch(
    context: TrainingContext, plan: Plan, learner: Learner[B_contra], progress: Progress, epoch: int
) -> Metrics:
    """Validates if it is time, writes the best and the last model, and returns the epoch's metrics."""
    _require_readable(plan, progress.skipped)
    is_last = epoch == plan.epochs
    metrics: Metrics = {"epoch": epoch, "loss": progress.loss / plan.epoch_steps}
    progress.loss = 0.0
    if progress.skipped:
        start = 0 if is_last else progress.reported  # an epoch's report may have been lost with its driver
        metrics |= {
            "skipped": len(progress.skipped),
            "skipped_images": dict(list(progress.skipped.items())[start:]),
        }
        progress.reported = len(progress.skipped)
    started, is_validated = time.monotonic(), is_last or epoch % plan.validate_every == 0
    metrics |= learner.validate() if is_validated else {}
    seconds = time.monotonic() - started
    score = metrics.get(learner.score)
    if score is not None and (progress.best is None or score >= progress.best):  # of equal scores the latest
        progress.best = score
        if context.rank == 0:
            learner.write("best.pt", metrics)
    if is_last and context.rank == 0:
        learner.write("last.pt", metrics)
    if is_validated:  # after the models, which hold no times: their bytes are the same in every training
        metrics["validation_seconds"] = seconds
    if learner.pass_seconds:
        metrics["backbone_seconds"] = learner.pass_seconds()
    return metrics


class _Stretch:
    """The measurements since the last report."""

    def __init__(self) -> None:
        self._started, self._num_steps = time.monotonic(), 0
        self._losses: list[tuple[int, float]] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, next_step: int, num_steps: int, loss: float) -> None:
        """Adds the steps up to `next_step`, with the sum of their losses."""
        self._num_steps += num_steps
        self._losses.append((next_step, loss / num_steps))

    def metrics(self, step_images: int) -> Metrics:
        speed = self._num_steps * step_images / self.seconds
        return {"step": self._losses[-1][0], "losses": self._losses, "images_per_second": speed}


def _require_finite(plan: Plan, step: int, loss: float, model: torch.nn.Module) -> None:
    if math.isfinite(loss) and is_finite(model):
        return
    raise ValueError(
        f"{plan.name}: the loss became {loss if not math.isfinite(loss) else math.inf} by step {step + 1:,} (epoch "
        f"{step // plan.epoch_steps + 1}); it is in no checkpoint. Lower {plan.section}.learning_rate and start "
        f"over with --restart {plan.name}."
    )


def _require_readable(plan: Plan, skipped: dict[str, Any]) -> None:
    if len(skipped) > plan.max_skipped_fraction * plan.num_images:
        first = min(skipped)
        remedy = "Put back or repair the images, then run the same command; or raise this fraction."
        if str(skipped[first]).endswith(MISSING):
            remedy = (
                "Put the files back, or name the images' new folder with prepare_dataset.py --images. Then run the "
                "same command."
            )
        raise ValueError(
            f"{plan.name}: {len(skipped):,} of {plural(plan.num_images, 'image')} could not be read (first: {first}: "
            f"{skipped[first]}), more than images.max_skipped_fraction = {plan.max_skipped_fraction:g}. {remedy}"
        )
