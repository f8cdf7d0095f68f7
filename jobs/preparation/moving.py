"""Handles images that were moved: the ids, labels and sizes are the same, only the addresses differ.

No result depends on the address of an image. So the manifest's rows do not change; only the places of whole folders do.
"""

from collections.abc import Sequence
from dataclasses import replace

from cluster.words import plural
from jobs.run.directory import Run
from storage.errors import BadImage
from storage.headers import read_header
from storage.images import read_many
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, resolve_address, write_manifest

LOOKED_AT = 20
MOST_FOLDERS = 20  # folders that may be moved at the same time


def find_moves(old: Sequence[ManifestRow], new: Sequence[ManifestRow]) -> dict[str, str] | None:
    """Old folder -> new folder, if two lists have the same images in different folders; else None.

    Args:
        old, new: rows with their addresses as written. The masks may differ.
    """
    if len(old) != len(new):
        return None
    moves: dict[str, str] = {}
    for before, after in zip(old, new, strict=True):
        same = {"uri": before.uri, "saliency_uri": before.saliency_uri, "mask_uri": before.mask_uri}
        if replace(after, **same) != before:  # type: ignore[arg-type]
            return None
        for one, other in ((before.uri, after.uri), (before.saliency_uri, after.saliency_uri)):
            if bool(one) != bool(other):
                return None
            if one and other and resolve_address(one, Location("/"), moves) != other:
                moves |= _folders(one, other)
        if len(moves) > MOST_FOLDERS:
            return None
    return moves


def move_run_images(run: Run, place: Location, *, dry_run: bool = False) -> None:
    """Records the new place of a prepared run's images.

    Args:
        place: a folder that has the images in the same subfolders as before.

    Raises:
        ValueError: the images are not there, or they are other images.
    """
    manifest = run.manifest()
    rows = [row for row in manifest.iter_written_rows() if row.uri and not row.problem and _is_outside(row.uri)]
    if not rows:
        raise ValueError(f"--images {place}: the images of this run are in the run itself and move with it.")
    moves = _moves_to(rows, place)
    addresses = [resolve_address(row.uri, run.location, moves) for row in rows]
    for row, address, header in zip(rows, addresses, read_many(addresses, read_header), strict=True):
        if isinstance(header, BadImage) and row.height is not None:
            raise ValueError(f"--images {place}: image {row.image_id!r} is not there ({address}: {header.reason}).")
        if not isinstance(header, BadImage) and row.height is not None and header.size != (row.height, row.width):
            raise ValueError(
                f"--images {place}: {address} has {header.width} x {header.height} pixels, but the run's image "
                f"{row.image_id!r} has {row.width} x {row.height}. Other images need another --run."
            )
    (old, new), *_ = moves.items()
    print(f"prepare: {plural(len(rows), 'image')} of the run are read in {new} instead of {old}.")
    if not dry_run:
        write_moves(manifest, run, {**manifest.moves, **moves})


def write_moves(
    manifest: Manifest, run: Run, moves: dict[str, str], masks: Sequence[ManifestRow] | None = None
) -> None:
    """Writes the manifest again, with its folders at their new places.

    Args:
        masks: rows with the current masks; None: those of the manifest.
    """
    rows = list(manifest.iter_written_rows())
    for number, row in enumerate(masks or ()):
        old = rows[number].mask_uri
        if not old or resolve_address(old, run.location, moves) != resolve_address(
            row.mask_uri or "", run.location, {}
        ):
            rows[number] = replace(rows[number], mask_uri=row.mask_uri)
    write_manifest(
        run.location / "manifest.parquet",
        rows,
        manifest.class_names,
        manifest.class_values,
        moves,
        additions=manifest.additions,
    )
    Manifest.forget()


def _moves_to(rows: Sequence[ManifestRow], place: Location) -> dict[str, str]:
    """The old folder, and the place where the first images are found now."""
    folders = [row.uri.split("/")[:-1] for row in rows]
    shared = folders[0]
    for folder in folders[1:]:
        common = next((n for n, (one, other) in enumerate(zip(shared, folder, strict=False)) if one != other), None)
        shared = shared[: min(len(shared), len(folder)) if common is None else common]
    step = max(1, len(rows) // LOOKED_AT)
    sample = rows[::step][:LOOKED_AT]
    least = 3 if rows[0].uri.startswith("s3://") else 1  # s3://bucket, or the root
    for depth in range(len(shared), least - 1, -1):  # the given folder may be above the folder of all images
        old = "/".join(shared[:depth])
        found = read_many([f"{place.uri.rstrip('/')}{row.uri[len(old) :]}" for row in sample], read_header)
        if not all(isinstance(header, BadImage) for header in found):
            return {old: place.uri.rstrip("/")}
    raise ValueError(
        f"--images {place}: none of the run's images is there (tried {sample[0].uri.rsplit('/', 1)[-1]} and "
        f"{len(sample) - 1} others). Give the folder that has them in the same subfolders as {'/'.join(shared)}."
    )


def _folders(old: str, new: str) -> dict[str, str]:
    """The remainders of two addresses without the parts at their ends that are the same."""
    one, other = old.split("/"), new.split("/")
    while one and other and one[-1] == other[-1]:
        one.pop()
        other.pop()
    return {"/".join(one): "/".join(other)}


def _is_outside(address: str) -> bool:
    return "://" in address or address.startswith("/")
