"""How long a request to S3 may take: an S3 file system that ends its requests, and says so while it waits.

botocore and s3fs repeat a request 30 times and more. Each attempt has a limit, but against a server that accepts
connections and never answers, all of them together take half an hour; against one that sends a byte a second, for ever.
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

SLOWEST_BYTES_PER_SECOND = 250_000  # a transfer has this much more time than `total_seconds`

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Waiting:
    """Limits of time, in seconds.

    Attributes:
        request_seconds: without a byte from the server, for one attempt (``FICKLENET_S3_REQUEST_SECONDS``).
        total_seconds: for a request with all its attempts, and again for the transfer of the object that it answers
            with; large objects get more, by `SLOWEST_BYTES_PER_SECOND` (``FICKLENET_S3_TOTAL_SECONDS``).
        notice_seconds: after which a warning says what is waited for.
    """

    request_seconds: float = 30.0
    total_seconds: float = 90.0
    notice_seconds: float = 20.0

    @classmethod
    def from_environment(cls) -> Self:
        """The limits that the environment names, else the defaults.

        Raises:
            StorageError: a value is not a positive number.
        """
        return cls(
            _seconds("FICKLENET_S3_REQUEST_SECONDS", cls.request_seconds),
            _seconds("FICKLENET_S3_TOTAL_SECONDS", cls.total_seconds),
        )


class PatientFileSystem(s3fs.S3FileSystem):
    """An S3 file system whose requests end within the limits of `waiting`; the `StorageError` then is not retried."""

    def __init__(self, *, waiting: Waiting, **options: Any) -> None:
        super().__init__(**options)
        self._waiting = waiting

    async def _call_s3(self, method: str, *given: Any, **named: Any) -> Any:
        place = "s3://" + "/".join(filter(None, (named.get("Bucket"), named.get("Key"))))
        sent = named.get("Body")
        limit = _Limit(place, self._waiting, len(sent) if isinstance(sent, bytes | bytearray | memoryview) else 0)
        async with limit.held():
            answer = await super()._call_s3(method, *given, **named)
        if method == "get_object":
            limit = _Limit(place, self._waiting, answer.get("ContentLength", 0))
            answer["Body"] = _LimitedBody(answer["Body"], limit)
        return answer

    call_s3 = sync_wrapper(_call_s3)


class _Limit:
    """A limit of time for one request, or for one transfer; to be made inside of an event loop."""

    def __init__(self, place: str, waiting: Waiting, num_bytes: int) -> None:
        self._place, self._waiting = place, waiting
        self._seconds = waiting.total_seconds + num_bytes / SLOWEST_BYTES_PER_SECOND
        self._start = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Ends the block with a `StorageError` at the limit, and logs a warning when it takes long."""
        loop = asyncio.get_running_loop()
        notice = loop.call_later(self._waiting.notice_seconds, self._say_that_it_waits)
        try:
            async with asyncio.timeout_at(self._start + self._seconds) as limit:
                yield
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise StorageError(
                f"{self._place}: the server did not answer in full within {self._seconds:.0f} s, retries included; "
                "check AWS_ENDPOINT_URL and the network, then run the same command again "
                "(FICKLENET_S3_TOTAL_SECONDS sets this limit)."
            ) from error
        finally:
            notice.cancel()

    def _say_that_it_waits(self) -> None:
        _logger.warning(
            "%s: no complete answer for %.0f s; waiting for up to %.0f s.",
            self._place, self._waiting.notice_seconds, self._seconds,
        )  # fmt: skip


class _LimitedBody:
    """An object's bytes as they come in, all of them within one limit."""

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
