"""The list of a training's images: the same as going over rows, without a row in memory until it is asked for."""

import pickle

import numpy as np
import pytest

from jobs.run.selection import Selection, is_tuning_image
from jobs.training.image_list import image_list
from storage.location import Location
from storage.manifest import ROW_GROUP_SIZE, Manifest, ManifestRow, write_manifest

SPLITS = ("train", "val", "extra")


@pytest.fixture(scope="module")
def rows() -> list[ManifestRow]:
    return [
        ManifestRow(
            f"id-{i}",
            f"images/{i}.jpg",
            labels=() if i % 5 == 0 else (i % 3,),
            split=SPLITS[i % 3 if i % 7 else 0],
            mask_uri=f"/masks/{i}.png" if i % 2 else None,
            problem="broken" if i % 11 == 0 else None,
            negative=i % 10 == 0,
        )
        for i in range(17 * ROW_GROUP_SIZE)
    ]


@pytest.fixture(scope="module")
def manifest(rows, tmp_path_factory) -> Manifest:
    place = Location(str(tmp_path_factory.mktemp("run") / "manifest.parquet"))
    write_manifest(place, rows, ["a", "b", "c"])
    return Manifest.open(place)


@pytest.mark.parametrize(
    ("splits", "without", "masks_of"),
    [(["train"], [], ()), ([], ["val"], ()), (["train", "extra"], [], ["extra"]), ([], [], None), (["no"], [], ())],
)
def test_the_list_holds_the_usable_images_of_its_splits(splits, without, masks_of, rows, manifest):
    images = image_list(manifest, splits, without, masks_of)
    wanted = [
        number
        for number, row in enumerate(rows)
        if (row.labels or row.negative)
        and not row.problem
        and (row.split in splits if splits else row.split not in without)
        and (row.mask_uri or masks_of is not None)
    ]
    assert images.rows.tolist() == wanted and len(images) == len(wanted)
    counts = [sum(label in rows[row].labels for row in wanted) for label in range(3)]
    assert images.class_counts().tolist() == counts
    may_read = [row for row in wanted if rows[row].mask_uri and (masks_of is None or rows[row].split in masks_of)]
    assert images.has_masks() == bool(may_read)
    images = pickle.loads(pickle.dumps(images.read()))  # as loader processes get it
    for position in [0, 1, len(wanted) // 2, len(wanted) - 1] if wanted else []:
        entry, row = images[position], rows[wanted[position]]
        assert (entry.row, entry.image_id, entry.labels) == (wanted[position], row.image_id, row.labels)
        assert entry.uri == str(manifest.location.parent / row.uri)
        assert entry.mask_uri == (row.mask_uri if wanted[position] in may_read else None)


@pytest.mark.parametrize("part", ["all", "tune", "report"])
def test_a_selection_of_columns_is_that_of_single_images(part, rows, manifest):
    selection = Selection(("train", "extra"), part)
    found = [selection.of(table["image_id"], table["split"]) for table in manifest.iter_tables(["image_id", "split"])]
    assert np.concatenate(found).tolist() == [selection.includes(row.image_id, row.split) for row in rows]
    assert any(is_tuning_image(row.image_id) for row in rows)
