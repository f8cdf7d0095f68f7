import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.column_text import joined, json_texts


def texts_of(values: list, kind: pa.DataType) -> bytes:
    return joined(json_texts(pa.array(values, kind)))


@given(st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"])), st.sampled_from('ab"é'))))
def test_strings_have_the_text_that_json_gives_them(values: list) -> None:
    assert texts_of(values, pa.string()) == json.dumps(values)[1:-1].encode()


@given(st.lists(st.one_of(st.none(), st.lists(st.integers(0, 300), max_size=3))))
def test_lists_of_numbers_have_the_text_that_json_gives_them(values: list) -> None:
    assert texts_of(values, pa.list_(pa.int16())) == json.dumps(values)[1:-1].encode()
    column = pa.array([[1], [], *values], pa.list_(pa.int16()))[1:]  # a part of a column
    assert joined(json_texts(column)) == json.dumps([[], *values])[1:-1].encode()


@pytest.mark.parametrize(
    ("values", "kind"), [([1, None, -3], pa.int64()), ([True, False], pa.bool_()), ([1, None], pa.int32())]
)
def test_numbers_have_the_text_that_json_gives_them(values: list, kind: pa.DataType) -> None:
    assert texts_of(values, kind) == json.dumps(values)[1:-1].encode()
