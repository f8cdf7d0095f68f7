"""Which masks of a run were corrected, and from which of its own masks.

Corrected masks are those that `import_masks.py` stored in the run, not the masks of the data set.
"""

from jobs.run.directory import Run

CORRECTED = "corrected"  # the folder of imported masks in the run
EXPORTED = "exported"  # the folder of the hashes of exported masks in the run; the names of files begin with the step


def is_corrected(run: Run, mask_uri: str | None) -> bool:
    """Whether a mask's address, as a row of the open manifest has it, is in the run's folder of corrected masks."""
    return mask_uri is not None and mask_uri.startswith(f"{run.uri}/{CORRECTED}/")


def exported_labels(run: Run) -> set[str]:
    """The steps whose masks the run has exported."""
    return {name.partition("-")[0] for name in (run.location / EXPORTED).list_names()}


def all_corrected_from(run: Run) -> set[str]:
    """The steps from whose masks all masks of the run may have been corrected; none if it has others.

    What nobody changed in a corrected mask agrees with the exported one, so figures measured with it favour its step.
    """
    uris = [uri for batch in run.manifest().iter_columns(["mask_uri"]) for uri in batch["mask_uri"] if uri]
    return exported_labels(run) if uris and all(is_corrected(run, uri) for uri in uris) else set()
