"""S3 through a proxy that breaks connections: retried, in the end one sentence, and never taken for a missing image."""

import io

import numpy as np
import pytest
from PIL import Image

from storage.errors import BadImage, StorageError
from storage.images import read_image, read_many
from storage.location import Location
from storage.map_store import MapStore
from storage.units import plan_units

PREFIX = "s3://test-bucket/faults"


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("fault", ["throttle", "fail", "reset", "truncate"])
def test_every_fault_is_retried_and_nothing_is_lost(fault: str, faulty_s3) -> None:
    places = [Location(f"{PREFIX}/{fault}/{number}.png") for number in range(10)]
    faulty_s3.set(**{fault: 0.3})
    for number, place in enumerate(places):
        place.write_bytes(png(picture(number)))
    found = read_many([place.uri for place in places], read_image)
    for number, image in enumerate(found):
        assert isinstance(image, np.ndarray), image
        np.testing.assert_array_equal(image, picture(number))
    assert faulty_s3.counts()[fault] > 0


def test_slow_answers_are_waited_for(faulty_s3) -> None:
    place = Location(f"{PREFIX}/slow")
    faulty_s3.set(latency=1.0)
    place.write_bytes(b"late")
    assert place.read_bytes() == b"late"


def test_arrays_survive_faults(faulty_s3) -> None:
    faulty_s3.set(throttle=0.05, fail=0.05, reset=0.05, truncate=0.05)
    place, [first, second] = Location(f"{PREFIX}/maps.zarr"), plan_units(7, 4)
    store = MapStore.create(place, 7, 2, (5, 5), 4)
    for unit in (first, second):
        maps = np.random.default_rng(unit.index).random((unit.num_images, 2, 5, 5))
        classes = np.tile(np.array([0, 1]), (unit.num_images, 1))
        store.write_unit(unit, maps, maps / 2, maps[..., 0, 0], classes)
    for unit in (first, second):
        maps = np.random.default_rng(unit.index).random((unit.num_images, 2, 5, 5))
        np.testing.assert_array_equal(MapStore.open(place).read_unit(unit).max, maps.astype(np.float16))


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        ({"throttle": 1.0}, "the server throttles even after all retries"),
        ({"fail": 1.0}, "the server answered InternalError after all retries"),
        ({"expire_at": ""}, "the credentials have expired; check the AWS_"),
        ({"deny": "one.png"}, "access denied; check the AWS_"),
        pytest.param({"reset": 1.0}, "faults/one.png: ", marks=pytest.mark.cluster),  # half a minute of retries
    ],
)
def test_what_does_not_pass_is_one_sentence_and_no_bad_image(faults, sentence, faulty_s3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    place = Location(f"{PREFIX}/one.png")
    place.write_bytes(png(picture(1)))
    faulty_s3.set(**faults)
    with pytest.raises(StorageError, match=sentence) as caught:
        read_many([place.uri], read_image)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_only_a_404_is_a_missing_image(faulty_s3) -> None:
    [missing] = read_many([f"{PREFIX}/never-there.png"], read_image)
    assert isinstance(missing, BadImage)
    assert missing.reason == "missing: no such file"
