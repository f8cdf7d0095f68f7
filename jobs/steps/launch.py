"""A launch of a step: which part of the step's units it computes, and which of them are missing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs.run.directory import Run
from jobs.steps.estimates import StepEstimate
from jobs.steps.unit_rows import UnitRow, copied_images
from storage.steps import Receipt, Skipped, Step
from storage.units import Shard, Unit, units_of_shard


@dataclass(frozen=True)
class LaunchOptions:
    """The options of a step's command line.

    Attributes:
        shard: (i, n): every n-th unit, starting at the i-th.
        restart: delete the step's results and start it again.
        retry_skipped: compute the units with skipped images again.
        dry_run: print what would be done; start and write nothing.
        estimate: what a dry run prints if no unit or epoch is finished.
        is_part: it is a step of a pipeline's dry run, whose end says what was started and written.
    """

    shard: Shard = (1, 1)
    restart: bool = False
    retry_skipped: bool = False
    dry_run: bool = False
    estimate: StepEstimate | None = None
    is_part: bool = False

    @property
    def launch(self) -> str:
        """The name of this launch in its heartbeat, such as "2-of-4" for the second of four shards."""
        return f"{self.shard[0]}-of-{self.shard[1]}"


@dataclass(frozen=True)
class UnitPlan:
    """The units of one launch.

    Attributes:
        step: the step.
        options: the options of the launch.
        start_id: the id of the step's start; "" in dry runs.
        units: the units of the launch's shard.
        receipts: the receipts of all finished units, by index.
        missing: the units to compute.
        images: the number of images in each unit of the step, by index.
        copied: how many images of a missing unit have results that are copied, by index.
    """

    step: Step
    options: LaunchOptions
    start_id: str
    units: Sequence[Unit]
    receipts: Mapping[int, Receipt]
    missing: Sequence[Unit]
    images: Mapping[int, int]
    copied: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Run, step: Step, units: Sequence[Unit], options: LaunchOptions, start_id: str = "") -> "UnitPlan":
        """What is left to do in a step; in a dry run of a restart, everything.

        Args:
            start_id: the id of the start that this launch opened.
        """
        receipts = {} if options.restart and options.dry_run else step.receipts()
        chosen = units_of_shard(units, options.shard)
        images = {unit.index: unit.num_images for unit in units}
        missing = step.missing_units(chosen, receipts)
        copied = copied_images(run, step, missing, receipts)
        return cls(step, options, start_id, chosen, receipts, missing, images, copied)

    @property
    def num_to_compute(self) -> int:
        """The number of images in the missing units, without those whose results are copied."""
        return sum(unit.num_images - self.copied.get(unit.index, 0) for unit in self.missing)

    @property
    def finished(self) -> list[Unit]:
        """The units of this launch that have a receipt."""
        missing = {unit.index for unit in self.missing}
        return [unit for unit in self.units if unit.index not in missing]

    @property
    def extended(self) -> list[Unit]:
        """The missing units that were finished before images were added to them."""
        return [unit for unit in self.missing if (old := self.receipts.get(unit.index)) and old.stop < unit.stop]

    @property
    def num_finished(self) -> int:
        """The number of images in all finished units, also in those outside this launch's shard."""
        extended = {unit.index for unit in self.extended}
        return sum(self.images.get(index, 0) for index in self.receipts if index not in extended)

    def rows(self, skipped: Mapping[int, tuple[Skipped, ...]]) -> list[UnitRow]:
        """The missing units as rows for the fan-out.

        Args:
            skipped: images that an upstream step skipped, by unit.
        """
        return [
            {"unit": unit, "start_id": self.start_id, "skipped": skipped.get(unit.index, ())} for unit in self.missing
        ]
