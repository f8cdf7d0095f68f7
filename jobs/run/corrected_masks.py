"""Which masks of a run were corrected: those that `import_masks.py` stored in it, not the masks of the data set."""

from jobs.run.directory import Run

CORRECTED = "corrected"  # the folder of imported masks in the run


def is_corrected(run: Run, mask_uri: str | None) -> bool:
    """Whether a mask's address, as a row of the open manifest has it, is in the run's folder of corrected masks."""
    return mask_uri is not None and mask_uri.startswith(f"{run.uri}/{CORRECTED}/")
