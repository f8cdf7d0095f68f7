import contextlib
import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from storage.errors import StorageError
from storage.heartbeat import beating, heartbeats
from storage.location import Location
from storage.manifest import Manifest, ManifestRow, write_manifest
from storage.map_store import MapStore
from storage.records import seal
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


def test_a_receipt_of_a_later_or_earlier_version_is_still_read() -> None:
    known = receipt_of(UNITS[0])
    content = {"unit": 0, "start": 0, "stop": 4, "seconds": 1.5, "finished": 1.7e9, "skipped": []}
    assert Receipt.from_json(json.dumps(content).encode()) == known
    assert Receipt.from_json(seal({**content, "gpu": "new"})) == known


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
    assert f"Start over with '{COMMAND} --restart maps', which deletes this step's results. To keep" in sentence
    assert step.fingerprint() == {"maps": {"num_samples": 200, "grid": [5, 7]}, "checkpoint": "ab"}


def test_an_unreadable_record_is_refused_with_the_remedy(location: Location) -> None:
    (location / "maps/step.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=r"step.json: damaged, .*no fingerprint.*--restart maps"):
        Step(location / "maps").open({}, COMMAND)


def test_differences_name_only_what_differs() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == "a.c: 2 -> 3"


def test_an_upstream_step_that_changed_is_named_by_its_name() -> None:
    old = {"seeds": {"theta": 1}, "upstream": {"maps": "12ab"}}
    new = {"seeds": {"theta": 4}, "upstream": {"maps": "34cd"}}
    assert differences(old, new) == "seeds.theta: 1 -> 4, its maps changed since"


def test_restart_begins_from_nothing_and_spares_its_neighbours(location: Location) -> None:
    step = Step(location / "maps")
    first = step.open({"a": 1}, COMMAND)
    step.write_receipt(receipt_of(UNITS[0]))
    MapStore.create(step.data() / "maps.zarr", 10, 2, (3, 3), 4)
    (location / "maps-of-another/x").write_bytes(b"1")
    second = step.open({"a": 2}, COMMAND, restart=True)
    assert (step.fingerprint(), step.start_id()) == ({"a": 2}, second)
    assert step.missing_units(UNITS) == UNITS
    assert not below(location / "maps") - {"step.json"}
    for data in (step.data(first), step.data()):
        with pytest.raises(FileNotFoundError):
            MapStore.open(data / "maps.zarr")
    assert (location / "maps-of-another/x").exists()
    third = step.open({"a": 2}, COMMAND, restart=True)
    assert len({first, second, third}) == len({step.data(start) for start in (first, second, third)}) == 3


def below(location: Location) -> set[str]:
    """The names directly below a location that hold anything."""
    return {name for name in location.list_names() if (location / name).exists() or below(location / name)}


def test_a_restart_of_a_step_that_never_was_started_is_a_first_start(location: Location) -> None:
    step = Step(location / "maps")
    step.open({"a": 1}, COMMAND, restart=True)
    assert step.data() == step.location


def test_a_damaged_record_is_restarted_beside_all_that_may_be_there(tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.open({"a": 1}, COMMAND)
    taken = [step.data(step.open({"a": 1}, COMMAND, restart=True)) for _ in range(3)]
    (step.location / "step.json").write_bytes(b"{")
    with pytest.raises(ValueError, match=r"step.json: damaged, cannot be read as a step's record .*--restart maps"):
        step.open({"a": 1}, COMMAND)
    step.open({"a": 1}, COMMAND, restart=True)
    assert step.data() not in [step.location, *taken]


def test_a_launch_that_did_not_notice_a_restart_writes_nothing_that_is_read(location: Location) -> None:
    """It was suspended, then goes on: with units whose data it writes, and with a receipt written a moment too late."""
    step = Step(location / "maps")
    old = step.open({"a": 1}, COMMAND)
    store = MapStore.create(step.data(old) / "maps.zarr", 10, 2, (3, 3), 4)
    new = step.open({"a": 2}, COMMAND, restart=True)
    fresh = MapStore.create(step.data(new) / "maps.zarr", 10, 2, (3, 3), 4)
    values = {"max": np.zeros((4, 2, 3, 3)), "mean": np.zeros((4, 2, 3, 3)), "score": np.zeros((4, 2))}
    classes = np.tile([0, 1], (4, 1))
    fresh.write_unit(UNITS[0], **values, classes=classes)
    step.write_receipt(replace(receipt_of(UNITS[0]), start_id=new))

    store.write_unit(UNITS[0], **{**values, "max": values["max"] + 1}, classes=classes)
    late = replace(receipt_of(UNITS[0], Skipped("7", "of the old settings")), start_id=old)
    with pytest.raises(ValueError, match="another launch restarted this step while this launch was running"):
        step.write_receipt(late)
    (step.data(old) / "done/000000.json").write_bytes(late.to_json())
    (step.data(old) / "done/000001.json").write_bytes(replace(late, unit=1, start=4, stop=8).to_json())
    assert step.missing_units(UNITS) == UNITS[1:]
    assert step.receipts()[0].skipped == ()
    assert not MapStore.open(step.data() / "maps.zarr").read_unit(UNITS[0]).max.any()


def test_receipts_without_a_start_count_for_the_first_start_alone(tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.open({"a": 1}, COMMAND)
    step.write_receipt(receipt_of(UNITS[0]))
    assert step.missing_units(UNITS) == UNITS[1:]
    step.open({"a": 1}, COMMAND, restart=True)
    step.write_receipt(receipt_of(UNITS[0]))
    assert step.missing_units(UNITS) == UNITS


@pytest.mark.parametrize("is_first", [True, False])
def test_data_of_an_old_start_is_kept_while_a_launch_works_on_it(is_first: bool, tmp_path: Path) -> None:
    """The launch was silent for so long that a restart was allowed, and then works again."""
    step = Step(Location(str(tmp_path)) / "maps")
    old = step.open({"a": 1}, COMMAND)
    if not is_first:
        old = step.open({"a": 1}, COMMAND, restart=True)
    (step.data(old) / "maps.zarr/max/c/0").write_bytes(b"old")
    step.open({"a": 2}, COMMAND, restart=True)
    (step.data(old) / "maps.zarr/max/c/0").write_bytes(b"old")  # the launch goes on
    with beating(step.location, "1-of-1", start_id=old):
        while not heartbeats(step.location):
            time.sleep(0.02)
        step.open({"a": 2}, COMMAND)
        assert (step.data(old) / "maps.zarr/max/c/0").exists()
    step.open({"a": 2}, COMMAND)
    assert not (step.data(old) / "maps.zarr/max/c/0").exists()


def test_the_heartbeat_of_a_killed_launch_is_gone_after_the_next_launch(tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.open({"a": 1}, COMMAND)
    killed = step.location / "drivers/1-of-1-0123abcd.json"
    killed.write_bytes(b'{"launch": "1-of-1", "host": "elsewhere", "pid": 5, "started": 0}')
    step.open({"a": 1}, COMMAND)
    assert killed.exists()  # it may live
    os.utime(killed.uri, times=(time.time() - 100, time.time() - 100))
    step.open({"a": 1}, COMMAND)
    assert not killed.exists()


def test_a_launch_that_joins_late_does_not_delete_a_newer_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.open({"a": 1}, COMMAND)
    second = step.open({"a": 1}, COMMAND, restart=True)
    third = step.open({"a": 1}, COMMAND, restart=True)
    (step.data(third) / "x").write_bytes(b"1")
    step._delete_starts_before(second, set())
    assert (step.data(third) / "x").exists()


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
        with beating(step.location, "1-of-1"):
            pass  # another launch of the same part ends
        for refused in (step.open, step.check_start):
            with pytest.raises(ValueError, match=r"a driver on .*, last heartbeat \d s ago\) is running this step\. "):
                refused({"a": 2}, COMMAND, restart=True)
            with pytest.raises(ValueError, match=r"Stop a driver on .* ago\) first and then start over with"):
                refused({"a": 2}, COMMAND, restart=False)
        assert step.fingerprint() == {"a": 1}
    step.open({"a": 2}, COMMAND, restart=True)
    assert step.fingerprint() == {"a": 2}


def test_results_of_other_images_are_not_read(tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)) / "maps")
    step.require_images("abc")  # never started
    step.open({"a": 1}, COMMAND, images="abc")
    step.require_images("abc")
    with pytest.raises(ValueError, match=r"other images or classes .*--restart maps"):
        step.require_images("abd")


def test_a_unit_that_is_forgotten_is_missing(location: Location) -> None:
    step = Step(location / "maps")
    step.open({"a": 1}, COMMAND)
    for unit in UNITS:
        step.write_receipt(receipt_of(unit))
    step.forget_units(UNITS[:2])
    assert step.missing_units(UNITS) == UNITS[:2]


def test_checksums_are_read_where_they_are_asked_for(location: Location) -> None:
    step, objects = Step(location / "maps"), {"maps.zarr/max/c/0/0": "12ab:3", 'a, "objects": {': "0:0"}
    receipt = replace(receipt_of(UNITS[0], Skipped("7", 'a reason with , "objects": {"x": 1}')), objects=objects)
    step.write_receipt(receipt)
    assert step.receipts() == {0: replace(receipt, objects={})}
    assert step.receipts(with_objects=True) == {0: receipt}
    assert step.receipt(UNITS[0]) == receipt
    assert step.receipt(Unit(0, 0, 3)) is step.receipt(UNITS[1]) is None


@pytest.mark.parametrize("times", ["1e300, 5", "NaN, 5", "1, Infinity"])
def test_a_receipt_with_impossible_times_counts_as_absent(times: str, tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path)))
    finished, seconds = times.split(", ")
    body = f'{{"unit": 0, "start": 0, "stop": 4, "skipped": [], "finished": {finished}, "seconds": {seconds}}}'
    (step.location / "done/000000.json").write_bytes(body.encode())
    assert step.missing_units(UNITS) == UNITS


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


@pytest.mark.parametrize(("number", "named", "end"), [(1, 1, ""), (2, 2, ""), (5, 3, " and 2 more")])
def test_a_refusal_names_the_living_drivers(number, named, end, tmp_path: Path) -> None:
    step = Step(Location(str(tmp_path / "maps")))
    step.open({"size": 1}, COMMAND)
    with contextlib.ExitStack() as launches:
        for shard in range(number):
            launches.enter_context(beating(step.location, f"{shard + 1}-of-{number}"))
        with pytest.raises(ValueError, match=rf"ago\){end} (is|are) running this step") as running:
            step.require_idle()
        with pytest.raises(ValueError, match=rf"Stop a driver on .*ago\){end} first and then start over") as other:
            step.open({"size": 2}, COMMAND)
    assert str(running.value).count("(process ") == str(other.value).count("(process ") == named
    assert ("Stop them first" in str(running.value)) == (number > 1)
