import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.units import Unit, parse_shard, plan_units, units_of_shard, units_with


@given(num_images=st.integers(0, 5000), unit_size=st.integers(1, 300))
def test_units_cover_every_image_once_and_in_order(num_images: int, unit_size: int) -> None:
    units = plan_units(num_images, unit_size)
    assert [row for unit in units for row in range(unit.start, unit.stop)] == list(range(num_images))
    assert [unit.index for unit in units] == list(range(len(units)))
    assert all(unit.num_images == unit_size for unit in units[:-1])


@given(num_images=st.integers(0, 2000), count=st.integers(1, 12))
def test_shards_share_all_units_without_overlap(num_images: int, count: int) -> None:
    units = plan_units(num_images, 7)
    shards = [units_of_shard(units, (number, count)) for number in range(1, count + 1)]
    assert sorted(unit for shard in shards for unit in shard) == units
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@given(is_wanted=st.lists(st.booleans(), max_size=300), unit_size=st.integers(1, 40))
def test_units_with_a_wanted_row_count_the_wanted_ones(is_wanted: list[bool], unit_size: int) -> None:
    units = units_with(is_wanted, unit_size)
    assert sum(unit.num_images for unit in units) == sum(is_wanted)
    expected = [unit for unit in plan_units(len(is_wanted), unit_size) if any(is_wanted[unit.start : unit.stop])]
    assert [(unit.index, unit.start, unit.stop) for unit in units] == [
        (unit.index, unit.start, unit.stop) for unit in expected
    ]


def test_a_unit_names_its_marker() -> None:
    assert Unit(12, 768, 832).name == "000012"
    assert parse_shard("2/4") == (2, 4)


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "2", "1/0", "-1/4", "a/b", "1/4/2"])
def test_other_shards_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected I/N"):
        parse_shard(text)


def test_an_empty_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 image"):
        plan_units(10, 0)
