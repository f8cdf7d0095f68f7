"""Masks of other values: 0 and 255, JPEG, 1 bit, from 0, in colours; and saliency maps of other ranges."""

import io

import numpy as np
import pytest
from PIL import Image

from storage.errors import BadImage
from storage.headers import Header
from storage.images import read_mask, read_saliency
from storage.location import Location
from storage.masks import (
    Translation,
    mask_colours,
    mask_values,
    parse_mask_values,
    rescale_saliency,
    saliency_scale,
)

CLASSES = {"cat": 8, "dog": 12}
TRUTH = np.kron(np.array([[0, 1], [2, 0]], np.uint8), np.ones((16, 16), np.uint8))  # 1 cat, 2 dog
PICTURE = Header(32, 32)


@pytest.fixture
def place(tmp_path) -> Location:
    return Location(str(tmp_path / "mask"))


def put(place: Location, image: Image.Image, kind: str = "PNG", **options: object) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    place.write_bytes(buffer.getvalue())
    return place.uri


def translated(uri: str, values: str, labels: tuple[str, ...] = ("cat",)) -> np.ndarray:
    """The new mask's values."""
    made = Translation(uri, PICTURE, parse_mask_values(values, list(CLASSES)), CLASSES, labels).make()
    return np.asarray(Image.open(io.BytesIO(made)))


# Read as they are


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(TRUTH),
        Image.fromarray(TRUTH).convert("RGB"),
        Image.fromarray(TRUTH).convert("LA"),
        Image.fromarray(np.dstack([TRUTH, TRUTH, TRUTH, np.full_like(TRUTH, 255)])),
        Image.fromarray(TRUTH.astype(np.uint16)),
    ],
    ids=lambda image: image.mode,
)
def test_grey_in_every_form_is_read_as_its_values(image: Image.Image, place: Location) -> None:
    np.testing.assert_array_equal(read_mask(put(place, image), [1, 2]), TRUTH)
    assert mask_values(place.uri) == (0, 1, 2)


def test_a_mask_of_one_bit_holds_zero_and_one(place: Location) -> None:
    np.testing.assert_array_equal(read_mask(put(place, Image.fromarray(TRUTH > 0)), [1, 2]), TRUTH > 0)


def test_a_jpeg_and_colours_are_refused_with_the_way_out(place: Location) -> None:
    with pytest.raises(BadImage, match=r"mask is a JPEG, which changes its values; .*--mask-values"):
        read_mask(put(place, Image.fromarray(TRUTH * 100), "JPEG"), [1])
    with pytest.raises(BadImage, match=r"mask has RGB pixels; .*--mask-values"):
        read_mask(put(place, Image.fromarray(np.dstack([TRUTH, TRUTH, TRUTH * 50]))), [1])


# Translated


def test_zero_and_255_is_a_class(place: Location) -> None:
    uri = put(place, Image.fromarray(np.where(TRUTH > 0, 255, 0).astype(np.uint8)))
    np.testing.assert_array_equal(translated(uri, "255=dog"), np.where(TRUTH > 0, 12, 0))


def test_the_images_one_label_can_be_meant(place: Location) -> None:
    uri = put(place, Image.fromarray(np.where(TRUTH > 0, 255, 0).astype(np.uint8)))
    for label, value in CLASSES.items():
        assert sorted(np.unique(translated(uri, "255=label", (label,)))) == [0, value]
    with pytest.raises(BadImage, match="the image has 2 labels"):
        translated(uri, "255=label", ("cat", "dog"))


def test_a_jpegs_pixels_count_as_the_nearest_listed_value(place: Location) -> None:
    truth = np.roll(TRUTH > 0, 3)  # its edges lie within the blocks of 8 that JPEG knows
    uri = put(place, Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)), "JPEG", quality=60)
    assert len(np.unique(np.asarray(Image.open(uri)))) > 2
    np.testing.assert_array_equal(translated(uri, "255=cat"), np.where(truth, 8, 0))


def test_classes_from_zero_need_a_value_for_the_background(place: Location) -> None:
    uri = put(place, Image.fromarray(np.choose(TRUTH, [255, 0, 1]).astype(np.uint8)))
    np.testing.assert_array_equal(translated(uri, "0=cat,1=dog,255=background"), np.choose(TRUTH, [0, 8, 12]))
    with pytest.raises(ValueError, match="0 is a class here, so say what the background is"):
        parse_mask_values("0=cat,1=dog", list(CLASSES))


def test_colours_are_classes_and_others_are_ignored(place: Location) -> None:
    colours = np.array([[0, 0, 0], [128, 0, 0], [64, 0, 128]], np.uint8)
    uri = put(place, Image.fromarray(colours[TRUTH]))
    assert set(mask_colours(uri)) == {(0, 0, 0), (128, 0, 0), (64, 0, 128)}
    np.testing.assert_array_equal(translated(uri, "#800000=cat,#400080=dog"), np.choose(TRUTH, [0, 8, 12]))
    np.testing.assert_array_equal(translated(uri, "#800000=cat"), np.choose(TRUTH, [0, 8, 255]))


def test_grey_values_of_a_palette_saved_as_grey_are_classes(place: Location) -> None:
    uri = put(place, Image.fromarray(np.choose(TRUTH, [0, 38, 75]).astype(np.uint8)))
    np.testing.assert_array_equal(translated(uri, "38=cat, 75=dog"), np.choose(TRUTH, [0, 8, 12]))


def test_a_mask_is_turned_and_scaled_with_its_picture(place: Location) -> None:
    wide = np.kron(TRUTH[:, :16], np.ones((1, 1), np.uint8))  # 32 x 16, as stored
    uri = put(place, Image.fromarray(wide))
    made = Translation(uri, Header(16, 32, 6), None, CLASSES, ()).make()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(made))), np.rot90(wide, -1))
    small = Translation(put(place, Image.fromarray(TRUTH)), Header(16, 16), None, CLASSES, ()).make()
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(small))), TRUTH[::2, ::2])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cat", "'cat' is not VALUE=CLASS"),
        ("255=", "'255=' is not VALUE=CLASS"),
        ("#80000=cat", "'#80000=cat' is not VALUE=CLASS"),
        ("255=cow", "'cow' is not a class. Allowed are cat, dog, and background, ignore, and label"),
        ("#800000=cat,255=dog", "give either numbers or colours"),
    ],
)
def test_a_slip_in_the_values_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_mask_values(text, list(CLASSES))


# Saliency


def test_saliency_of_zero_and_one_is_found_and_rescaled(place: Location) -> None:
    uri = put(place, Image.fromarray((TRUTH > 0).astype(np.uint8)))
    assert saliency_scale([uri, f"{uri}-absent"]) == 1 and read_saliency(uri).max() < 0.01
    np.testing.assert_array_equal(rescale_saliency(uri, 1), (TRUTH > 0) * 255)
    assert saliency_scale([put(place, Image.fromarray(TRUTH))]) is None  # up to 2: nobody knows
    assert saliency_scale([put(place, Image.fromarray(TRUTH > 0))]) is None
    assert saliency_scale([put(place, Image.fromarray(TRUTH * 0))]) is None


def test_saliency_of_few_bits_in_16_is_rescaled(place: Location) -> None:
    uri = put(place, Image.fromarray(TRUTH.astype(np.uint16) * 2047))
    assert saliency_scale([uri]) == 4095
    np.testing.assert_allclose(rescale_saliency(uri, 4095) / 255, TRUTH * (2047 / 4095), atol=0.005)


def test_saliency_of_one_bit_and_of_floats_is_read(place: Location) -> None:
    np.testing.assert_array_equal(read_saliency(put(place, Image.fromarray(TRUTH > 0))), TRUTH > 0)
    floats = (TRUTH / 2).astype(np.float32)
    np.testing.assert_array_equal(read_saliency(put(place, Image.fromarray(floats), "TIFF")), floats)
    with pytest.raises(BadImage, match="floating-point saliency outside 0 to 1"):
        read_saliency(put(place, Image.fromarray(floats * 255), "TIFF"))
