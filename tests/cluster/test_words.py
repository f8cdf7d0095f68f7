"""Counts in sentences."""

import pytest

from cluster.words import listed, plural


@pytest.mark.parametrize(
    ("count", "noun", "words"),
    [
        (1, "worker", "1 worker"),
        (0, "image", "0 images"),
        (1464, "image", "1,464 images"),
        (1, "class", "1 class"),
        (20, "class", "20 classes"),
        (1.0, "GPU", "1 GPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (12_345_678_901, "object", "12,345,678,901 objects"),
    ],
)
def test_a_noun_agrees_with_its_count(count, noun, words):
    assert plural(count, noun) == words


def test_names_are_listed_in_a_sentence():
    found = [listed(names) for names in ([], ["maps"], ["maps", "seeds"], ["maps", "seeds", "predictions"])]
    assert found == ["", "maps", "maps and seeds", "maps, seeds and predictions"]
