from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.image_identity import images_id, images_ids
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest

ROWS = [ManifestRow(f"id_{number}", f"/images/{number}.jpg", (number % 2,), split="train") for number in range(3000)]


def id_of(place: Path, rows: list[ManifestRow], class_names: tuple[str, ...] = ("cat", "dog")) -> str:
    write_manifest(Location(str(place)), rows, class_names)
    return images_id(Manifest.open(Location(str(place))))


def test_masks_splits_and_the_files_layout_do_not_change_the_id(tmp_path: Path) -> None:
    first = id_of(tmp_path / "a.parquet", ROWS)
    assert first == id_of(tmp_path / "b.parquet", [replace(row, mask_uri="/m.png", split="val") for row in ROWS])
    pq.write_table(pq.read_table(tmp_path / "a.parquet"), tmp_path / "c.parquet", row_group_size=7)
    assert first == images_id(Manifest.open(Location(str(tmp_path / "c.parquet"))))


@pytest.mark.parametrize(
    "rows",
    [
        ROWS[::-1],
        ROWS[:-1],
        [ROWS[1], ROWS[0], *ROWS[2:]],
        [replace(ROWS[0], image_id="id_0i"), replace(ROWS[1], image_id="d_1"), *ROWS[2:]],  # the same text in one line
    ],
)
def test_another_order_or_other_images_change_the_id(rows: list[ManifestRow], tmp_path: Path) -> None:
    assert id_of(tmp_path / "a.parquet", ROWS) != id_of(tmp_path / "b.parquet", rows)


def test_another_order_of_the_classes_changes_the_id(tmp_path: Path) -> None:
    assert id_of(tmp_path / "a.parquet", ROWS) != id_of(tmp_path / "b.parquet", ROWS, ("dog", "cat"))


def test_a_manifest_that_was_replaced_in_its_place_has_another_id(tmp_path: Path) -> None:
    assert id_of(tmp_path / "a.parquet", ROWS) != id_of(tmp_path / "a.parquet", ROWS[::-1])


def test_added_images_keep_the_earlier_ids(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "a.parquet"))
    before = [id_of(tmp_path / "a.parquet", ROWS[:number]) for number in (1500, 2500, 3000)]
    write_manifest(place, ROWS, ("cat", "dog"), additions=(1500, 2500))
    assert images_ids(Manifest.open(place)) == tuple(before)
    write_manifest(place, [ROWS[1], ROWS[0], *ROWS[2:]], ("cat", "dog"), additions=(1500, 2500))
    assert not set(images_ids(Manifest.open(place))) & set(before)
