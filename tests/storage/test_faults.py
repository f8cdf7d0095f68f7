"""S3 through a proxy that breaks connections: retried, in the end one sentence, and never taken for a missing image."""

import asyncio
import contextlib
import io
import logging
import socket
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from storage.errors import BadImage, StorageError
from storage.images import read_image, read_many
from storage.location import Location
from storage.map_store import MapStore
from storage.s3 import file_system
from storage.s3_waiting import SILENT_SECONDS, Waiting, _Limit, _Silence
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
        ({"throttle": 1.0}, "the server still throttles after all retries"),
        ({"fail": 1.0}, "the server answered InternalError after all retries"),
        ({"expire_at": ""}, "the credentials have expired; check the AWS_"),
        ({"deny": "one.png"}, r"access denied \(AccessDenied\); check the AWS_"),
        ({"redirect": 1.0}, "the bucket is in the region elsewhere-1, .*; set AWS_DEFAULT_REGION=elsewhere-1"),
        ({"malformed": 1.0}, r"another region \(AuthorizationHeaderMalformed\); set AWS_DEFAULT_REGION to the"),
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


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [("redirect", "set AWS_DEFAULT_REGION=elsewhere-1"), ("malformed", r"\(400\).*set AWS_DEFAULT_REGION to the")],
)
def test_a_wrong_region_is_named_where_the_answer_has_no_text(fault, sentence, faulty_s3, monkeypatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    faulty_s3.set(**{fault: 1.0})
    with pytest.raises(StorageError, match=sentence):
        Location(f"{PREFIX}/one.png").exists()  # HEAD


def test_only_a_404_is_a_missing_image(faulty_s3) -> None:
    [missing] = read_many([f"{PREFIX}/never-there.png"], read_image)
    assert isinstance(missing, BadImage)
    assert missing.reason == "missing: no such file"


HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: 100000\r\n\r\n"


@pytest.fixture(params=["never answers", "drips"])
def slow_server(request, monkeypatch) -> Iterator[str]:
    """An endpoint that accepts connections and never answers, or answers by a byte at a time; the limits are short."""
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(65536)
            if request.param == "drips":
                connection.sendall(HEADER)
            while not ended.wait(0.2):
                if request.param == "drips":
                    connection.sendall(b" ")

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        server.settimeout(0.2)
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "FICKLENET_S3_REQUEST_SECONDS": "1",
            "FICKLENET_S3_TOTAL_SECONDS": "2",
        }.items():
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield request.param
        ended.set()
        thread.join()


@pytest.mark.timeout(120)
def test_a_server_that_never_ends_its_answer_is_one_sentence(slow_server: str) -> None:
    place = Location("s3://bucket/run/x")
    actions = {
        "read": place.read_bytes,
        "start": lambda: place.read_start(100),
        "exists": place.exists,
        "list": place.list_names,
        "delete": place.delete,
        "write": lambda: place.write_bytes(b"1"),
    }
    for name, action in actions.items():
        if slow_server == "drips" and name in ("exists", "write"):
            continue  # these answers have no body
        start = time.monotonic()
        with pytest.raises(StorageError, match=r"^s3://bucket.*: there was no complete answer within 2 s") as told:
            action()
        assert time.monotonic() - start < 20, name
        assert "\n" not in str(told.value)


def test_arrays_on_a_server_that_never_answers_are_one_sentence(slow_server: str) -> None:
    with pytest.raises(StorageError, match="there was no complete answer within 2 s"):
        MapStore.open(Location("s3://bucket/run/maps.zarr"))


def test_a_long_wait_is_said(caplog) -> None:
    async def wait() -> None:
        async with _Limit("s3://bucket/x", Waiting(notice_seconds=0.05), 250_000_000, _Silence()).held():
            await asyncio.sleep(0.2)

    with caplog.at_level(logging.WARNING):
        asyncio.run(wait())
    assert caplog.messages == ["s3://bucket/x: no complete answer after 0 s; waiting for up to 1090 s."]


def test_after_a_request_without_an_answer_the_next_ones_wait_less_until_there_is_one() -> None:
    """Otherwise the log, the heartbeat and the last checks of a job that ends would each wait for the whole time."""
    silence, waited = _Silence(), []

    async def ask(server_seconds: float) -> None:
        limit = _Limit("s3://bucket/x", Waiting(total_seconds=90.0), 0, silence)
        limit._start -= limit._seconds - 0.1  # as if all but a tenth of a second had passed
        waited.append(limit._seconds)
        async with limit.held():
            await asyncio.sleep(server_seconds)

    for seconds in (1.0, 1.0, 0.0, 0.0):
        with contextlib.suppress(StorageError):
            asyncio.run(ask(seconds))
    assert waited == [90.0, SILENT_SECONDS, SILENT_SECONDS, 90.0]


@pytest.mark.parametrize("text", ["soon", "-1", "0", "inf", "nan"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch) -> None:
    monkeypatch.setenv("FICKLENET_S3_TOTAL_SECONDS", text)
    with pytest.raises(StorageError, match=rf"^FICKLENET_S3_TOTAL_SECONDS is '{text}'; give a positive number"):
        file_system()
