from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr

from storage.location import Location
from storage.map_store import MapStore
from storage.seed_store import SeedStore
from storage.unit_arrays import UnitArrays, header_record
from storage.units import Unit, plan_units
from storage.verify import verify_headers

NUM_IMAGES, NUM_SLOTS, GRID, UNIT_SIZE = 10, 3, (5, 7), 4
UNITS = plan_units(NUM_IMAGES, UNIT_SIZE)


def create(location: Location, **changes) -> MapStore:
    shape = {
        "num_images": NUM_IMAGES,
        "num_slots": NUM_SLOTS,
        "grid": GRID,
        "unit_size": UNIT_SIZE,
        **changes,
    }
    return MapStore.create(location, **shape)


def drawn_unit(unit: Unit) -> dict[str, np.ndarray]:
    """Image i has i % 4 classes: 0, 2, ... ; the maps' values follow from the image and the slot."""
    generator = np.random.default_rng(unit.index)
    rows = np.arange(unit.start, unit.stop)[:, None]
    slots = np.arange(NUM_SLOTS)[None]
    maps = generator.random((2, unit.num_images, NUM_SLOTS, *GRID), dtype=np.float32)
    score = generator.normal(size=(unit.num_images, NUM_SLOTS)).astype(np.float32)
    return {
        "max": maps[0],
        "mean": maps[1],
        "score": score,
        "classes": np.where(slots < rows % 4, 2 * slots, -1),
    }


def stored_bytes(location: Location) -> dict[str, bytes]:
    """Every object below a location."""
    found: dict[str, bytes] = {}
    for name in location.list_names():
        child = location / name
        if child.exists():
            found[name] = child.read_bytes()
        else:
            found |= {f"{name}/{below}": data for below, data in stored_bytes(child).items()}
    return found


def test_an_image_reads_back_its_real_slots(location: Location) -> None:
    store = create(location)
    for unit in UNITS:
        store.write_unit(unit, **drawn_unit(unit))
    reader = MapStore.open(location)
    for unit in UNITS:
        written = drawn_unit(unit)
        for row in range(unit.num_images):
            maps = reader.read(unit.start + row)
            slots = (unit.start + row) % 4
            np.testing.assert_array_equal(maps.classes, [0, 2, 4][:slots])
            np.testing.assert_array_equal(maps.max, written["max"][row, :slots].astype(np.float16))
            np.testing.assert_array_equal(maps.mean, written["mean"][row, :slots].astype(np.float16))
            np.testing.assert_array_equal(maps.score, written["score"][row, :slots])


def test_a_unit_reads_back_with_fill_values_in_empty_slots(location: Location) -> None:
    store = create(location)
    store.write_unit(UNITS[2], **drawn_unit(UNITS[2]))
    maps = MapStore.open(location).read_unit(UNITS[2])
    assert maps.max.shape == (2, NUM_SLOTS, *GRID) and maps.max.dtype == np.float16
    np.testing.assert_array_equal(np.isnan(maps.max).all(axis=(2, 3)), maps.classes < 0)
    np.testing.assert_array_equal(np.isnan(maps.score), maps.classes < 0)


def test_same_arrays_give_the_same_bytes_whatever_order_and_repeats(location: Location) -> None:
    first, second = create(location / "first"), create(location / "second")
    for unit in UNITS:
        first.write_unit(unit, **drawn_unit(unit))
    for index in (2, 0, 2, 1, 0):
        again = MapStore.open(location / "second", "r+")
        again.write_unit(UNITS[index], **drawn_unit(UNITS[index]))
    assert second.num_images == NUM_IMAGES
    objects = stored_bytes(location / "first")
    assert objects == stored_bytes(location / "second")
    assert len(objects) == 5 + 4 * len(UNITS)  # metadata of the group and four arrays; a shard per unit and array


def test_units_written_at_the_same_time_lose_nothing(location: Location) -> None:
    create(location)
    with ThreadPoolExecutor(len(UNITS)) as pool:
        list(pool.map(lambda unit: MapStore.open(location, "r+").write_unit(unit, **drawn_unit(unit)), UNITS))
    store = MapStore.open(location)
    assert [len(store.read(index).classes) for index in range(NUM_IMAGES)] == [i % 4 for i in range(NUM_IMAGES)]


def test_overwriting_another_result_leaves_no_trace_of_it(location: Location) -> None:
    store, other = create(location / "store"), create(location / "other")
    for unit in UNITS:
        values = drawn_unit(unit)
        store.write_unit(unit, **{**values, "max": values["max"] / 2})
        store.write_unit(unit, **values)
        other.write_unit(unit, **values)
    assert stored_bytes(location / "store") == stored_bytes(location / "other")


def test_a_unit_without_any_map_is_written_all_the_same(location: Location) -> None:
    store = create(location)
    empty = {**drawn_unit(UNITS[0]), "classes": np.full((4, NUM_SLOTS), -1)}
    store.write_unit(UNITS[0], **empty)
    assert len(store.read(1).classes) == 0


def refuse_what_a_type_cannot_hold(condition, one, other):
    """``np.where`` by the rules of numpy 2.5: a Python integer takes the array's type, and has to fit it."""
    arrays = [value for value in (one, other) if isinstance(value, np.ndarray)]
    for value in (one, other):
        if arrays and isinstance(value, int):
            np.array(value, dtype=arrays[0].dtype)  # raises OverflowError
    return numpy_where(condition, one, other)


numpy_where = np.where


def test_largest_classes_are_stored_by_the_integer_rules_of_numpy_2_5(location: Location, monkeypatch) -> None:
    monkeypatch.setattr(np, "where", refuse_what_a_type_cannot_hold)
    with pytest.raises(OverflowError):
        np.where(np.ones(1, bool), np.zeros(1, np.int16), 32768)
    store, values = create(location), drawn_unit(UNITS[0])
    values["classes"] = np.array([[0, 32766, 32767], [32767, -1, -1], [-1, -1, -1], [5, 6, -1]], np.int16)
    store.write_unit(UNITS[0], **values)
    np.testing.assert_array_equal(MapStore.open(location).read_unit(UNITS[0]).classes, values["classes"])
    values["classes"] = np.array([[32767, 32766, -1], [0, 0, -1], [-1, 0, -1], [0, 1, 2]], np.int16)
    with pytest.raises(ValueError, match="must ascend"):
        store.write_unit(UNITS[0], **values)


def test_a_class_number_beyond_the_stored_type_is_refused(location: Location) -> None:
    values = drawn_unit(UNITS[0]) | {"classes": np.array([[0, 1, 32768]] * 4)}
    with pytest.raises(ValueError, match="32768 given; the store can have class numbers up to 32767"):
        create(location).write_unit(UNITS[0], **values)


def test_a_unit_that_was_never_written_is_not_read(location: Location) -> None:
    store = create(location)
    store.write_unit(UNITS[0], **drawn_unit(UNITS[0]))
    with pytest.raises(ValueError, match=r"unit 000001 \(images 4 to 7\) is not written"):
        store.read(5)
    with pytest.raises(ValueError, match="is not written"):
        store.read_unit(UNITS[1])
    with pytest.raises(IndexError):
        store.read(NUM_IMAGES)


def test_a_lost_shard_is_not_read_as_empty_maps(location: Location) -> None:
    store = create(location)
    store.write_unit(UNITS[0], **drawn_unit(UNITS[0]))
    (location / "mean/c/0/0/0/0").delete()
    with pytest.raises(ValueError, match=r"unit 000000 .* is not written"):
        store.read(3)


@pytest.mark.parametrize(
    "unit",
    [
        Unit(0, 0, 3),
        Unit(0, 1, 5),
        Unit(1, 0, 4),
        Unit(2, 8, 12),
        Unit(0, 0, 8),
        Unit(3, 12, 16),
        Unit(-1, -4, 0),
    ],
)
def test_anything_but_one_unit_is_refused(unit: Unit, tmp_path: Path) -> None:
    store = create(Location.parse(str(tmp_path)))
    with pytest.raises(ValueError, match="writes that share a shard would be lost"):
        store.write_unit(unit, **drawn_unit(Unit(0, 0, unit.num_images)))
    assert not (store.location / "max/c/0/0/0/0").exists()


@pytest.mark.parametrize("name", ["max", "mean", "score"])
def test_partial_and_broken_arrays_are_refused(name: str, tmp_path: Path) -> None:
    store = create(Location.parse(str(tmp_path)))
    values = drawn_unit(UNITS[0])
    with pytest.raises(ValueError, match=rf"{name}"):
        store.write_unit(UNITS[0], **{**values, name: values[name][:, :2]})
    with pytest.raises(ValueError, match=rf"{name}"):
        store.write_unit(UNITS[0], **{**values, name: values[name][:3]})
    for broken in (np.nan, np.inf, 1e39):
        damaged = values[name].astype(np.float64)
        damaged[3, 1] = broken  # a real slot
        with pytest.raises(ValueError, match=rf"{name}: not finite"):
            store.write_unit(UNITS[0], **{**values, name: damaged})


@pytest.mark.parametrize("classes", [[1, 0, -1], [1, 1, -1], [0, -1, 2]])
def test_slots_out_of_order_are_refused(classes: list[int], tmp_path: Path) -> None:
    store = create(Location.parse(str(tmp_path)))
    with pytest.raises(ValueError, match="must ascend"):
        store.write_unit(UNITS[0], **{**drawn_unit(UNITS[0]), "classes": np.array([classes] * 4)})


def test_a_second_launch_joins_the_same_arrays_and_refuses_others(location: Location) -> None:
    create(location).write_unit(UNITS[0], **drawn_unit(UNITS[0]))
    assert len(create(location).read(3).classes) == 3
    with pytest.raises(ValueError, match=r"unit_size 4 -> 5.*Use another run, or --restart"):
        create(location, unit_size=5)
    with pytest.raises(ValueError, match=r"max \(10, 3, 5, 7\) float16 -> \(10, 2, 5, 7\)"):
        create(location, num_slots=2)


def test_a_creation_that_was_interrupted_is_completed(location: Location) -> None:
    create(location)
    (location / "score/zarr.json").delete()
    create(location).write_unit(UNITS[0], **drawn_unit(UNITS[0]))
    assert len(MapStore.open(location).read(2).score) == 2


def test_a_store_grows_by_images_and_keeps_its_units(location: Location) -> None:
    store = create(location)
    for unit in UNITS:
        store.write_unit(unit, **drawn_unit(unit))
    before = stored_bytes(location)
    grown = create(location, num_images=NUM_IMAGES + 5)
    kept = {name: data for name, data in stored_bytes(location).items() if "/c/" in name}
    assert kept == {name: data for name, data in before.items() if "/c/" in name}
    assert np.array_equal(MapStore.open(location).read(9).max, store.read(9).max)
    for unit in plan_units(NUM_IMAGES + 5, UNIT_SIZE)[2:]:
        grown.write_unit(unit, **drawn_unit(unit))
    assert [len(MapStore.open(location).read(row).classes) for row in (1, 11, 13)] == [1, 3, 1]
    assert not verify_headers(location.parent)
    with pytest.raises(ValueError, match=r"num_images 15 -> 10"):
        create(location)


def test_a_growth_that_was_interrupted_is_completed(location: Location) -> None:
    create(location).write_unit(UNITS[0], **drawn_unit(UNITS[0]))
    header_record(location).delete()
    zarr.open_group(location.zarr_store(), mode="r+")["max"].resize((NUM_IMAGES + 3, NUM_SLOTS, *GRID))
    assert create(location, num_images=NUM_IMAGES + 3).num_images == NUM_IMAGES + 3
    assert len(MapStore.open(location).read(3).classes) == 3
    assert not verify_headers(location.parent)


def test_opening_nothing_is_a_file_not_found_error(location: Location) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no arrays here\. .* started it again \(--restart\).* a pipeline with --redo-outdated"
    ):
        MapStore.open(location)


def test_xarray_opens_the_store_with_named_dimensions(location: Location) -> None:
    store = create(location, attributes={"class_names": ["cat", "dog"]})
    for unit in UNITS:
        store.write_unit(unit, **drawn_unit(unit))
    dataset = xarray.open_zarr(location.zarr_store(read_only=True), consolidated=False)
    assert dataset["max"].dims == dataset["mean"].dims == ("image", "slot", "y", "x")
    assert dataset["score"].dims == dataset["classes"].dims == ("image", "slot")
    assert dataset.attrs["class_names"] == ["cat", "dog"]
    np.testing.assert_array_equal(dataset["classes"].sel(image=3), [0, 2, 4])
    np.testing.assert_array_equal(dataset["max"].sel(image=6, slot=1), store.read(6).max[1])
    assert dataset["classes"].dtype == np.int16 and int(dataset["classes"].sel(image=0, slot=0)) == -1


def test_seeds_read_back_and_unwritten_ones_are_refused(location: Location) -> None:
    store = SeedStore.create(location, NUM_IMAGES, 5, GRID, UNIT_SIZE)
    label = np.random.default_rng(0).choice([0, 1, 5, 255], size=(2, *GRID))
    store.write_unit(UNITS[2], label)
    reader = SeedStore.open(location)
    np.testing.assert_array_equal(reader.read(9), label[1])
    np.testing.assert_array_equal(reader.read_unit(UNITS[2]), label)
    assert reader.read(9).dtype == np.uint8
    with pytest.raises(ValueError, match="is not written"):
        reader.read(0)
    with pytest.raises(ValueError, match="label 6: expected 0"):
        store.write_unit(UNITS[2], np.full((2, *GRID), 6))


def test_seeds_of_long_class_lists_keep_255_as_a_class(location: Location) -> None:
    store = SeedStore.create(location, 2, 300, GRID, 2)
    label = np.full((2, *GRID), 255)
    label[0, 0, :3] = 300, 0, 65535
    store.write_unit(Unit(0, 0, 2), label)
    np.testing.assert_array_equal(SeedStore.open(location).read(0), label[0])


def test_a_foreign_zarr_group_is_refused(tmp_path: Path) -> None:
    import zarr

    zarr.create_group(store=tmp_path / "foreign")
    with pytest.raises(ValueError, match="was not made by this project"):
        UnitArrays.open(Location.parse(str(tmp_path / "foreign")), [])
