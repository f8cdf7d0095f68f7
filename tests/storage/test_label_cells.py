"""Labels in one cell: separators, lists of Python, JSON and numpy, flags and numbers."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.label_cells import as_number, is_flag, parse_labels, read_flag
from storage.text import clean_name

NAMES = st.lists(st.text(st.characters(categories=["L", "N"], include_characters=" ,;|'\"()")), max_size=4)


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("cat;dog", ("cat", "dog")),
        ("cat | potted plant|cat", ("cat", "potted plant")),
        ("['cat', 'dog']", ("cat", "dog")),
        ('["cat","dog"]', ("cat", "dog")),
        ("['cat' 'dog']", ("cat", "dog")),
        ("['cat'\n 'dog']", ("cat", "dog")),
        ("[cat, dog]", ("cat", "dog")),
        ("('cat', 'dog')", ("cat", "dog")),
        ("{'cat'}", ("cat",)),
        ("['it\\'s', \"a, b\"]", ("it's", "a, b")),
        ('["K\\u00e4se"]', ("Käse",)),
        ("[1, 2]", ("1", "2")),
        ("[]", ()),
        ("", ()),
        ("(unknown)", ("(unknown)",)),
        ("cat, dog", ("cat, dog",)),
    ],
)
def test_labels_are_read_as_programs_write_them(cell: str, labels: tuple[str, ...]) -> None:
    assert parse_labels(cell) == labels


def test_separators_can_be_named() -> None:
    assert parse_labels("cat, dog", ",") == ("cat", "dog")
    assert parse_labels("cat dog", " ") == ("cat", "dog")
    assert parse_labels("AC; DC", "|") == ("AC; DC",)


@pytest.mark.parametrize("cell", ["['cat]", "[[1, 2]]", "['a' b']"])
def test_a_list_that_cannot_be_read_is_no_name(cell: str) -> None:
    with pytest.raises(ValueError, match="begin as a list"):
        parse_labels(cell)


@given(names=NAMES)
def test_any_names_survive_python_json_and_numpy(names: list[str]) -> None:
    wanted = tuple(dict.fromkeys(filter(None, map(clean_name, names))))
    assert parse_labels(str(names)) == wanted
    assert parse_labels(json.dumps(names)) == wanted
    if names:
        assert parse_labels(str(np.array(names, dtype=object))) == wanted


def test_flags_and_numbers() -> None:
    assert [read_flag(cell) for cell in ("1", "1.0", "True", "0", "0.0", "no", "-1", "-1.0", "")] == [
        1, 1, 1, 0, 0, 0, -1, -1, None,
    ]  # fmt: skip
    assert not is_flag("2") and not is_flag("cat") and is_flag("") and is_flag("FALSE")
    assert [as_number(label) for label in ("3", "3.0", "03", "3.5", "-1", "x", "")] == [3, 3, 3, None, None, None, None]
