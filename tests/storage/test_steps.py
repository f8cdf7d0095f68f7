import time
from dataclasses import replace
from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.heartbeat import beating, heartbeats
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.map_store import MapStore
from storage.steps import Receipt, Skipped, Step, differences, require_complete
from storage.units import Unit, plan_units

UNITS = plan_units(10, 4)
COMMAND = "python jobs/generate_maps.py --run runs/a"


def receipt_of(unit: Unit, *skipped: Skipped) -> Receipt:
    return Receipt(unit.index, unit.start, unit.stop, seconds=1.5, finished=1.7e9, skipped=skipped)


def test_receipts_come_back_as_written(location: Location) -> None:
    step = Step(location / "maps")
    receipt = receipt_of(UNITS[2], Skipped("9", "empty file"))
    step.write_receipt(receipt)
    assert step.receipts() == {2: receipt}


def test_exactly_the_units_without_a_receipt_are_missing(location: Location) -> None:
    step = Step(location / "maps")
    assert step.missing_units(UNITS) == UNITS
    step.write_receipt(receipt_of(UNITS[1]))
    assert step.missing_units(UNITS) == [UNITS[0], UNITS[2]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'{"unit": 0}',
        b"\xff",
        receipt_of(UNITS[0]).to_json()[:-5],
        receipt_of(UNITS[1]).to_json(),
    ],
)
def test_a_marker_that_is_not_its_units_receipt_counts_as_absent(body: bytes, location: Location) -> None:
    step = Step(location / "maps")
    (location / "maps/done/000000.json").write_bytes(body)
    (location / "maps/done/.000001.json.5f.partial").write_bytes(receipt_of(UNITS[1]).to_json())
    assert step.missing_units(UNITS) == UNITS


def test_a_receipt_of_another_unit_size_counts_as_absent(location: Location) -> None:
    step = Step(location / "maps")
    step.write_receipt(receipt_of(Unit(0, 0, 3)))
    assert step.missing_units(UNITS) == UNITS


def test_a_receipt_of_a_later_version_is_still_read() -> None:
    known = receipt_of(UNITS[0])
    assert Receipt.from_json(known.to_json()[:-1] + b', "gpu": "new"}') == known


def test_the_same_settings_join_a_step_and_other_settings_are_refused(location: Location) -> None:
    step = Step(location / "maps")
    assert step.fingerprint() is None
    fingerprint = {"maps": {"num_samples": 200, "grid": (5, 7)}, "checkpoint": "ab"}
    step.open(fingerprint, COMMAND)
    step.open(fingerprint, COMMAND + " --other")
    with pytest.raises(ValueError, match="was started with other settings") as refusal:
        step.open({**fingerprint, "maps": {"num_samples": 100, "grid": (5, 7)}, "unit_size": 64}, COMMAND)
    sentence = str(refusal.value)
    assert "(maps.num_samples: 200 -> 100, unit_size: absent -> 64)" in sentence
    assert sentence.endswith(f"Use another run, or start over with '{COMMAND} --restart maps'.")
    assert step.fingerprint() == {"maps": {"num_samples": 200, "grid": [5, 7]}, "checkpoint": "ab"}


def test_an_unreadable_record_is_refused_with_the_remedy(location: Location) -> None:
    (location / "maps/step.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"not a step's record.*--restart maps"):
        Step(location / "maps").open({}, COMMAND)


def test_differences_name_only_what_differs() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: 2 -> 3"


def test_a_setting_in_the_fingerprint_of_an_earlier_step_goes_by_its_own_name() -> None:
    old = {"seeds": {"seeds": {"theta": 1}, "maps": {"maps": {"num_samples": 2}, "seed": 3}}}
    new = {"seeds": {"seeds": {"theta": 4}, "maps": {"maps": {"num_samples": 5}, "seed": 6}}}
    assert differences(old, new) == "maps.num_samples: 2 -> 5, seeds.maps.seed: 3 -> 6, seeds.theta: 1 -> 4"


def test_restart_forgets_the_step_and_spares_its_neighbours(location: Location) -> None:
    step = Step(location / "maps")
    step.open({"a": 1}, COMMAND)
    step.write_receipt(receipt_of(UNITS[0]))
    MapStore.create(location / "maps/maps.zarr", 10, 2, (3, 3), 4)
    (location / "maps-of-another/x").write_bytes(b"1")
    step.restart()
    assert step.fingerprint() is None
    assert step.missing_units(UNITS) == UNITS
    with pytest.raises(FileNotFoundError):
        MapStore.open(location / "maps/maps.zarr")
    assert (location / "maps-of-another/x").exists()
    step.open({"a": 2}, COMMAND)


def test_a_driver_that_did_not_notice_a_restart_leaves_no_receipt_that_counts(location: Location) -> None:
    step = Step(location / "maps")
    late = replace(receipt_of(UNITS[0]), start_id=step.open({"a": 1}, COMMAND))
    step.write_receipt(late)
    assert step.missing_units(UNITS) == UNITS[1:]
    step.restart()
    start_id = step.open({"a": 1}, COMMAND)  # the same settings: the fingerprint alone would not tell
    with pytest.raises(ValueError, match="was started anew by another launch while this one was at work"):
        step.write_receipt(late)
    (location / "maps/done/000000.json").write_bytes(late.to_json())  # written before the restart was seen
    assert step.missing_units(UNITS) == UNITS
    step.write_receipt(replace(late, start_id=start_id))
    assert step.missing_units(UNITS) == UNITS[1:]


def test_all_launches_of_a_step_share_its_start_id(location: Location) -> None:
    assert Step(location / "maps").start_id() == ""
    first = Step(location / "maps").open({"a": 1}, COMMAND)
    assert first == Step(location / "maps").open({"a": 1}, COMMAND) == Step(location / "maps").start_id() != ""


def test_restart_beside_a_living_driver_is_refused(tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.open({"a": 1}, COMMAND)
    with beating(step.location, "1-of-1"):
        while not heartbeats(step.location):
            time.sleep(0.02)
        with pytest.raises(ValueError, match=r"a driver on .* is at work here, last seen \d s ago\. Stop it first"):
            step.restart()
        assert step.fingerprint() == {"a": 1}
    step.restart()
    assert step.fingerprint() is None


def test_a_node_without_the_drivers_folder_says_so(tmp_path: Path) -> None:
    here, elsewhere = Step(Location(str(tmp_path / "here"))), Step(Location(str(tmp_path / "elsewhere")))
    here.open({"a": 1}, COMMAND)
    here.require_here()
    with pytest.raises(StorageError, match=r"not on node .*: the path is on the driver's own disk\. Use an s3:// run"):
        elsewhere.require_here()


def test_an_unfinished_step_is_refused_with_counts_and_command(tmp_path: Path) -> None:
    run = Location.parse(str(tmp_path))
    rows = [ManifestRow(f"2007_{i:06d}", f"/images/{i}.jpg") for i in range(10)]
    write_manifest(run / "manifest.parquet", rows, ["cat"])
    manifest, step = Manifest.open(run / "manifest.parquet"), Step(run / "maps")
    for unit in (UNITS[0], UNITS[2]):
        step.write_receipt(receipt_of(unit))
    with pytest.raises(ValueError) as refusal:
        require_complete(step, UNITS, manifest, "aggregate_seeds", COMMAND)
    assert str(refusal.value) == (
        f"aggregate_seeds: maps are complete for 6 of 10 images (first missing: 2007_000004). Run '{COMMAND}' first."
    )
    step.write_receipt(receipt_of(UNITS[1]))
    require_complete(step, UNITS, manifest, "aggregate_seeds", COMMAND)
