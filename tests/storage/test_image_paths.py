"""Paths of images in a source: what is plain needs no resolving, and is resolved to the same."""

import os

from hypothesis import given
from hypothesis import strategies as st

from storage.image_paths import _PLAIN, id_of_path, resolve_path
from storage.location import Location

PARTS = st.sampled_from(["a", "b c", ".", "..", "", "~", ".h", "x.jpg", "c:", "s3:", "a\\b", "a.b.c", "\0"])


@given(st.lists(PARTS, min_size=1, max_size=4), st.sampled_from(["", "/", "s3://", "~/"]))
def test_a_plain_path_is_what_its_location_says(parts: list[str], start: str) -> None:
    path = start + "/".join(parts)
    if _PLAIN.fullmatch(path):
        assert resolve_path(Location("/photos"), path) == os.path.abspath(os.path.join("/photos", path))
        assert resolve_path(Location("s3://bucket/a"), path) == (
            path if path.startswith("/") else f"s3://bucket/a/{path}"
        )
    else:
        assert {"", ".", "..", "~", ".h", "c:", "s3:", "a\\b", "\0"} & {*parts} or start == "~/" or start == "s3://"


def test_an_id_is_the_path_below_the_folder_without_suffix() -> None:
    assert id_of_path("train/a.b.jpg") == id_of_path("./train/a.b.jpg") == id_of_path("train\\a.b.jpg") == "train__a.b"
    assert id_of_path("/photos/train/a.jpg") == id_of_path("s3://bucket/train/a.jpg") == "a"
