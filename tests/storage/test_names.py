import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.names import is_safe_id, safe_name

ANY_TEXT = st.text(st.characters(), max_size=300) | st.text(st.sampled_from("./\\%~ ab\0"), max_size=8)


@given(first=ANY_TEXT, second=ANY_TEXT)
def test_different_ids_give_different_file_names(first: str, second: str) -> None:
    assert (safe_name(first) == safe_name(second)) == (first == second)


@given(image_id=ANY_TEXT)
def test_a_file_name_stays_in_its_folder(image_id: str) -> None:
    name = safe_name(image_id)
    assert 0 < len(name) <= 200
    assert not set(name) & set("/\\\0 <>&\"'") and not name.startswith(".")


@pytest.mark.parametrize("image_id", ["2007_000032", "a b", "картина", "photo.1", "x" * 200])
def test_plain_names_are_safe_ids(image_id: str) -> None:
    assert is_safe_id(image_id)


@pytest.mark.parametrize("image_id", ["", "..", ".hidden", "a/b", "../x", "a\\b", "a\0", "a\nb", "x" * 201, "\ud800"])
def test_paths_and_controls_are_not(image_id: str) -> None:
    assert not is_safe_id(image_id)


def test_ordinary_ids_stay_as_they_are() -> None:
    assert safe_name("2007_000032") == "2007_000032"
