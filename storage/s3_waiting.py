"""Limits the time of requests to S3: a file system that ends slow requests, and warns while it waits.

botocore and s3fs repeat a request 30 times and more. Only each attempt has a limit. If a server accepts connections but
never answers, all attempts together take half an hour. If it sends one byte per second, a request never ends.

A job that ends because of such a server still has to write a log and a heartbeat. So after a request that reached its
limit, the next ones have `SILENT_SECONDS` only, until the server answers again.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import s3fs
from fsspec.asyn import sync_wrapper

from storage.errors import StorageError
from storage.s3 import endpoint_setting

SLOWEST_BYTES_PER_SECOND = 250_000  # large transfers get this time in addition to `total_seconds`

SILENT_SECONDS = 10.0  # the limit of a request to a server that did not answer the last one

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """Time limits, in seconds.

    Attributes:
        request_seconds: the longest time without a byte from the server, for one attempt
            (``FICKLENET_S3_REQUEST_SECONDS``).
        total_seconds: the longest time of a request with all its attempts, and of the transfer of an object
            (``FICKLENET_S3_TOTAL_SECONDS``). Large objects get more, by `SLOWEST_BYTES_PER_SECOND`.
        notice_seconds: after this time a warning says what the process waits for.
    """

    request_seconds: float = 30.0
    total_seconds: float = 90.0
    notice_seconds: float = 20.0

    @classmethod
    def from_environment(cls) -> Self:
        """The limits in the environment variables, else the defaults.

        Raises:
            StorageError: a value is not a positive number.
        """
        return cls(
            _seconds("FICKLENET_S3_REQUEST_SECONDS", cls.request_seconds),
            _seconds("FICKLENET_S3_TOTAL_SECONDS", cls.total_seconds),
        )


class PatientFileSystem(s3fs.S3FileSystem):
    """An S3 file system that ends requests at the limits of `waiting`, with a `StorageError` that is not retried."""

    def __init__(self, *, waiting: Waiting, **options: Any) -> None:
        super().__init__(**options)
        self._waiting, self._silence = waiting, _Silence()

    async def _call_s3(self, method: str, *given: Any, **named: Any) -> Any:
        place = "s3://" + "/".join(filter(None, (named.get("Bucket"), named.get("Key"))))
        sent = named.get("Body")
        num_bytes = len(sent) if isinstance(sent, bytes | bytearray | memoryview) else 0
        limit = _Limit(place, self._waiting, num_bytes, self._silence)
        async with limit.held():
            answer = await super()._call_s3(method, *given, **named)
        if method == "get_object":
            limit = _Limit(place, self._waiting, answer.get("ContentLength", 0), self._silence)
            answer["Body"] = _LimitedBody(answer["Body"], limit)
        return answer

    call_s3 = sync_wrapper(_call_s3)


@dataclass
class _Silence:
    """Whether the server did not answer the last request that ended."""

    is_silent: bool = False


class _Limit:
    """The time limit of one request or one transfer; make it inside an event loop."""

    def __init__(self, place: str, waiting: Waiting, num_bytes: int, silence: _Silence) -> None:
        self._place, self._waiting, self._silence = place, waiting, silence
        total = waiting.total_seconds
        self._seconds = min(total, SILENT_SECONDS) if silence.is_silent else total
        self._seconds += num_bytes / SLOWEST_BYTES_PER_SECOND
        self._start = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Ends the `with` block with a `StorageError` at the limit, and logs a warning if it takes long."""
        loop = asyncio.get_running_loop()
        notice = loop.call_later(self._waiting.notice_seconds, self._say_that_it_waits)
        try:
            async with asyncio.timeout_at(self._start + self._seconds) as limit:
                yield
            self._silence.is_silent = False
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._silence.is_silent = True
            raise StorageError(
                f"{self._place}: there was no complete answer within {self._seconds:.0f} s, with all retries; "
                f"check {endpoint_setting()}the region and the network, then run the same command again "
                "(FICKLENET_S3_TOTAL_SECONDS sets this limit)."
            ) from error
        finally:
            notice.cancel()

    def _say_that_it_waits(self) -> None:
        _logger.warning(
            "%s: no complete answer after %.0f s; waiting for up to %.0f s.",
            self._place, self._waiting.notice_seconds, self._seconds,
        )  # fmt: skip


class _LimitedBody:
    """The bytes of an object as they arrive; one time limit applies to all of them."""

    def __init__(self, body: Any, limit: _Limit) -> None:
        self._body, self._limit = body, limit

    async def read(self, *amount: int) -> bytes:
        async with self._limit.held():
            return await self._body.read(*amount)

    def close(self) -> None:
        self._body.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise StorageError(f"{name} is '{text}'; give a positive number of seconds, or unset it.")
    return seconds
