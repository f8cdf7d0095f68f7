"""Stored data that changes after its receipt: found by whoever reads it, found by `verify_unit`, and mended."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage.errors import Damaged
from storage.label_folder import LabelFolder
from storage.location import Location
from storage.map_store import MapStore
from storage.receipts import Receipt
from storage.seed_store import SeedStore
from storage.steps import Step
from storage.units import Unit, plan_units
from storage.verify import repair, verify_headers, verify_unit

UNITS, GRID = plan_units(10, 4), (5, 7)
COMMAND = "python jobs/generate_maps.py --run runs/a"


def maps_of(unit: Unit, scale: float = 1.0) -> dict[str, np.ndarray]:
    maps = np.random.default_rng(unit.index).random((2, unit.num_rows, 2, *GRID)) * scale
    return {
        "max": maps[0],
        "mean": maps[1],
        "score": maps[0, :, :, 0, 0],
        "classes": np.tile([0, 3], (unit.num_rows, 1)),
    }


def receipt_of(step: Step, unit: Unit, objects: dict[str, str]) -> Receipt:
    return Receipt(unit.index, unit.start, unit.stop, 1.0, time.time(), (), step.start_id(), objects=objects)


def finished_maps(run: Location) -> tuple[Step, MapStore]:
    """A step `maps` with three units."""
    step = Step(run / "maps")
    step.open({"a": 1}, COMMAND)
    store = MapStore.create(step.data() / "maps.zarr", 10, 2, GRID, 4, {"class_names": list("abcde")})
    for unit in UNITS:
        step.write_receipt(receipt_of(step, unit, store.write_unit(unit, **maps_of(unit))))
    return step, MapStore.open(store.location)


def finished_seeds(run: Location) -> tuple[Step, SeedStore]:
    step = Step(run / "seeds")
    step.open({"a": 1}, COMMAND)
    store = SeedStore.create(step.data() / "seeds.zarr", 10, 5, GRID, 4)
    for unit in UNITS:
        label = np.random.default_rng(unit.index).integers(0, 6, (unit.num_rows, *GRID))
        step.write_receipt(receipt_of(step, unit, store.write_unit(unit, label)))
    return step, SeedStore.open(store.location)


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".partial"))


def flip(path: Path, generator: random.Random) -> bytes:
    """Flips one bit of a file and returns the good bytes."""
    good = path.read_bytes()
    bit = generator.randrange(8 * len(good))
    data = bytearray(good)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
    return good


@pytest.mark.parametrize("make", [finished_maps, finished_seeds])
def test_what_was_written_is_read_and_verified(make: Callable, location: Location) -> None:
    step, store = make(location)
    for unit in UNITS:
        receipt = step.receipt(unit)
        assert receipt is not None
        assert len(receipt.objects) in (1, 4)
        assert verify_unit(step.data(), receipt) == []
        store.read_unit(unit)
    assert verify_headers(step.data()) == []


def test_every_flipped_bit_of_a_shard_is_found_by_the_reader_of_its_unit(tmp_path: Path) -> None:
    """The last unit is shorter than its shard, which zarr reads in parts."""
    _, store = finished_maps(Location(str(tmp_path)))
    _, seeds = finished_seeds(Location(str(tmp_path)))
    generator = random.Random(0)
    shards = [path for path in files_below(tmp_path) if "/c/" in str(path)]
    for _ in range(300):
        shard = generator.choice(shards)
        unit = UNITS[int(str(shard).split("/c/")[1].split("/")[0])]
        good = flip(shard, generator)
        with pytest.raises(Damaged, match=r"damaged .*verify"):
            (store if "maps.zarr" in str(shard) else seeds).read_unit(unit)
        shard.write_bytes(good)
    np.testing.assert_array_equal(store.read_unit(UNITS[2]).max, maps_of(UNITS[2])["max"].astype(np.float16))


def test_a_flipped_bit_of_an_image_is_found_by_who_reads_that_image_alone(tmp_path: Path) -> None:
    """Only the checksums inside the shard are compared then; the index of the shard has one too."""
    _, store = finished_maps(Location(str(tmp_path)))
    expected = store.read(4)
    generator, found = random.Random(1), 0
    shard = tmp_path / "maps/maps.zarr/max/c/1/0/0/0"
    for _ in range(200):
        good = flip(shard, generator)
        try:
            np.testing.assert_array_equal(store.read(4).max, expected.max)  # the bit was another image's
        except Damaged:
            found += 1
        shard.write_bytes(good)
    assert found > 30


@pytest.mark.parametrize("name", ["max", "mean", "score", "classes"])
def test_a_lost_exchanged_or_shortened_shard_is_named(name: str, location: Location) -> None:
    step, store = finished_maps(location)
    tail = "/0" * (3 if name in ("max", "mean") else 1)
    shard, other = (step.data() / f"maps.zarr/{name}/c/{index}{tail}" for index in (1, 0))
    good = shard.read_bytes()
    for damaged, what in ((other.read_bytes()[:-1], "bytes, "), (good[:-7], "were written"), (b"", "0 bytes")):
        shard.write_bytes(damaged)
        with pytest.raises(Damaged, match=what):
            store.read_unit(UNITS[1])
    shard.delete()
    for read in (lambda: store.read_unit(UNITS[1]), lambda: store.read(5)):
        with pytest.raises(Damaged, match=r"the file is missing\)\. Run 'python jobs/verify.py --run .*--repair'"):
            read()


def test_a_shard_of_another_unit_is_found_though_its_own_checksums_are_right(tmp_path: Path) -> None:
    _, store = finished_maps(Location(str(tmp_path)))
    arrays = tmp_path / "maps/maps.zarr"
    (arrays / "max/c/1/0/0/0").write_bytes((arrays / "max/c/0/0/0/0").read_bytes())
    with pytest.raises(Damaged, match=r"written|have changed"):
        store.read_unit(UNITS[1])


def test_one_flipped_bit_in_any_file_of_a_step_is_found_by_verification(tmp_path: Path) -> None:
    """A damaged receipt is none, so its unit is missing; a damaged record of the step is refused."""
    run = Location(str(tmp_path))
    step, _ = finished_maps(run)
    generator = random.Random(2)
    for path in files_below(tmp_path):
        for _ in range(8):
            good = flip(path, generator)
            assert not is_sound(step), path
            path.write_bytes(good)
    assert is_sound(step)


def is_sound(step: Step) -> bool:
    """Whether verification finds nothing wrong."""
    try:
        receipts = [step.receipt(unit) for unit in UNITS]
        missing = step.missing_units(UNITS)
    except ValueError as error:
        return "step.json: damaged" not in str(error)
    damages = [verify_unit(step.data(), receipt) for receipt in receipts if receipt] + [verify_headers(step.data())]
    return not missing and None not in receipts and not any(damages)


def test_repair_ends_in_the_undisturbed_bytes(tmp_path: Path) -> None:
    step, store = finished_maps(Location(str(tmp_path)))
    arrays = tmp_path / "maps/maps.zarr"
    undisturbed = {path: path.read_bytes() for path in files_below(arrays)}
    generator = random.Random(3)
    flip(arrays / "max/c/1/0/0/0", generator)
    flip(arrays / "score/c/2/0", generator)  # of the last unit, whose shard zarr reads before it writes it
    (arrays / "mean/c/2/0/0/0").write_bytes(b"")
    flip(arrays / "mean/zarr.json", generator)
    receipts = {unit: step.receipt(unit) for unit in UNITS}
    damaged = [unit for unit, receipt in receipts.items() if receipt and verify_unit(step.data(), receipt)]
    headers = verify_headers(step.data())
    assert damaged == UNITS[1:]
    assert [damage.place.uri for damage in headers] == [str(arrays / "mean/zarr.json")]

    repair(step, damaged, headers)
    assert step.missing_units(UNITS) == UNITS[1:]
    store = MapStore.create(step.data() / "maps.zarr", 10, 2, GRID, 4, {"class_names": list("abcde")})
    for unit in step.missing_units(UNITS):
        step.write_receipt(receipt_of(step, unit, store.write_unit(unit, **maps_of(unit))))
    assert {path: path.read_bytes() for path in files_below(arrays)} == undisturbed
    assert is_sound(step)


@pytest.mark.parametrize("name", ["zarr.json", "max/zarr.json"])
@pytest.mark.parametrize("body", [None, b"", b"{", b"[]", b"{}", b'{"zarr_format": 3, "node_type": "array"}'])
def test_a_damaged_description_of_arrays_is_one_sentence(name: str, body: bytes | None, tmp_path: Path) -> None:
    _, store = finished_maps(Location(str(tmp_path)))
    place = tmp_path / "maps/maps.zarr" / name
    place.unlink()
    if body is not None:
        place.write_bytes(body)
    with pytest.raises(Damaged, match=r"damaged .*verify") as refusal:
        MapStore.open(store.location)
    assert "\n" not in str(refusal.value)


def test_units_of_earlier_versions_are_read_without_a_receipts_checksums(tmp_path: Path) -> None:
    step, store = finished_maps(Location(str(tmp_path)))
    old = receipt_of(step, UNITS[0], {})
    (step.data() / "done" / old.name).write_bytes(
        b'{"unit": 0, "start": 0, "stop": 4, "seconds": 1, "finished": 2, "skipped": []}'
    )
    assert step.missing_units(UNITS) == []
    store.read_unit(UNITS[0])
    (step.data() / "maps.zarr/mean/c/0/0/0/0").delete()
    with pytest.raises(Damaged, match="the file is missing"):
        store.read_unit(UNITS[0])


def test_label_files_are_verified_like_shards(location: Location) -> None:
    step = Step(location / "predictions")
    step.open({"a": 1}, COMMAND)
    folder = LabelFolder(step.data() / "labels", 5)
    objects = {
        path: value for row in range(4) for path, value in folder.write(f"image_{row}", np.full((3, 4), row)).items()
    }
    receipt = receipt_of(step, UNITS[0], objects)
    assert verify_unit(step.data(), receipt) == []
    folder.place("image_1").delete()
    folder.write("image_2", np.full((3, 4), 1))
    wrong = {str(damage).rsplit("/", 1)[1] for damage in verify_unit(step.data(), receipt)}
    assert {text.split(":")[0] for text in wrong} == {"image_1.png", "image_2.png"}
