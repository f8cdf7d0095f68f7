"""The loop of a training: global steps, workers that compare notes, checkpoints, the metrics of an epoch.

What a step computes, what validation measures and how a model becomes a file is the `Learner`'s. Which images a step
sees follows from its number, so a training continues from any step on any number of workers.
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

COMPARE_EVERY = 10
"""Steps after which workers compare notes: losses are looked at then, and checkpoints taken."""


class Batch(Protocol):
    """Whatever a step takes."""

    @property
    def skipped(self) -> dict[str, str]:
        """Images that could not be read, and why; they weigh nothing in the batch."""


B_contra = TypeVar("B_contra", bound=Batch)


@dataclass(frozen=True)
class Learner(Generic[B_contra]):
    """What is trained.

    Attributes:
        model: without the wrapper of distributed training.
        optimizer: its parameter groups have factors, as ``ficklenet.classifier_training.make_optimizer`` makes them.
        learning_rate: of a global step, before the groups' factors.
        step: makes one step with this worker's share of the batch; returns its loss, detached, whose mean over the
            workers is the batch's.
        validate: the metrics on the validation images, the same on every worker; {} where there are none.
        score: the name among these by which an epoch is the best.
        write: writes the model with the epoch's metrics under a name; called on rank 0.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    step: Callable[[B_contra, int], Tensor]
    validate: Callable[[], dict[str, float]]
    score: str
    write: Callable[[str, Metrics], None]


@dataclass
class Progress:
    """How far a training is; part of every checkpoint.

    Attributes:
        next_step: global.
        loss: sum over the present epoch's steps so far.
        best: the highest score so far.
        skipped: images that could not be read, and why.
        reported: how many of these, in their order, earlier epochs have reported.
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

    Mid-epoch reports have `step`, `losses` ([step, mean loss up to it] pairs), `learning_rate`, `images_per_second` and
    the number of `workers`. Those at an epoch's end also have `epoch`, its mean `loss`, what validation found and,
    where there are any, how many images were `skipped` so far and, as `skipped_images`, those new in this epoch, or at
    the last one all, with the reasons. `best.pt` is written whenever no earlier validation was better, `last.pt` at the
    end; each before the checkpoint that counts it.

    Args:
        batches_of: this worker's share of each of these global steps, in order.

    Raises:
        ValueError: the loss or a weight is no longer a number, or too many images could not be read.
    """
    progress, checkpoint = Progress(), context.latest()
    if checkpoint is not None:
        progress = Progress(**unpack_training(checkpoint, learner.model, learner.optimizer))
    steps = range(progress.next_step, plan.steps)
    stretch, loss, skipped = _Stretch(), torch.zeros((), device=context.device), dict[str, str]()
    num_steps, kept_at = 0, time.monotonic()
    for step, batch in zip(steps, batches_of(steps), strict=True):
        # 1. A step
        set_learning_rate(learner.optimizer, learner.learning_rate(step))
        loss += learner.step(batch, step)
        skipped |= batch.skipped
        num_steps += 1
        epoch, step_in_epoch = divmod(step + 1, plan.epoch_steps)  # epochs that are finished, steps beyond them
        if step_in_epoch % COMPARE_EVERY:
            continue

        # 2. Notes are compared
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

        # 3. A report and a checkpoint; at an epoch's end its metrics. Very short epochs share a checkpoint
        metrics = stretch.metrics(plan.step_images)
        metrics |= {"learning_rate": learner.learning_rate(step), "workers": context.world_size}
        if step_in_epoch == 0:
            metrics |= _finish_epoch(context, plan, learner, progress, epoch)
        state = None
        if is_due or epoch % plan.stretch == 0 or epoch == plan.epochs:
            kept_at = time.monotonic()
            state = pack_training(learner.model, learner.optimizer, asdict(progress)) if context.rank == 0 else None
        context.report(metrics, state)
        stretch = _Stretch()


def _finish_epoch(
    context: TrainingContext, plan: Plan, learner: Learner[B_contra], progress: Progress, epoch: int
) -> Metrics:
    """Validates when it is time, and writes the best and the last model; the epoch's metrics."""
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
    if is_last or epoch % plan.validate_every == 0:
        metrics |= learner.validate()
    score = metrics.get(learner.score)
    if score is not None and (progress.best is None or score >= progress.best):  # of equals the longest trained
        progress.best = score
        if context.rank == 0:
            learner.write("best.pt", metrics)
    if is_last and context.rank == 0:
        learner.write("last.pt", metrics)
    return metrics


class _Stretch:
    """What was measured since the last report."""

    def __init__(self) -> None:
        self._started, self._num_steps = time.monotonic(), 0
        self._losses: list[tuple[int, float]] = []

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def add(self, next_step: int, num_steps: int, loss: float) -> None:
        """Steps up to one, and the sum of their losses."""
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
        f"{step // plan.epoch_steps + 1}); no checkpoint of it was kept. Lower {plan.section}.learning_rate and start "
        f"over with --restart {plan.name}."
    )


def _require_readable(plan: Plan, skipped: dict[str, Any]) -> None:
    if len(skipped) > plan.max_skipped_fraction * plan.num_images:
        first = min(skipped)
        raise ValueError(
            f"{plan.name}: {len(skipped):,} of {plural(plan.num_images, 'image')} could not be read (first: {first}: "
            f"{skipped[first]}), more than images.max_skipped_fraction = {plan.max_skipped_fraction:g}. "
            "Repair the images or the manifest, or raise this fraction."
        )
