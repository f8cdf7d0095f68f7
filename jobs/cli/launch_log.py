"""The log of a launch in `<run>/logs/`: everything that it printed, and the traceback of an error that ended it.

Each message begins with its time (UTC). The name has the start time, the script, the host and the process:
`20261126-174500-generate_maps-node1-4711.log`. On a disk, the file grows while the job works. On S3, it is written
again every 15 s, if it has grown, and at the end. So a killed job leaves its log too.
"""

import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import IO, Any

from jobs.cli.command_line import LOG_NOTE
from jobs.cli.plain_output import PlainOutput
from jobs.run.directory import LOGS, Run
from storage.location import Location

UPLOAD_SECONDS = 15.0


class Log:
    """A file to write to: a time before each message, and control characters escaped.

    A full disk loses lines of the log and nothing else.
    """

    def __init__(self, file: IO[str]) -> None:
        self._plain, self._is_at_start = PlainOutput(file), True

    def write(self, text: str) -> None:
        if not text:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S ", time.gmtime()) if self._is_at_start and text.strip() else ""
        self._is_at_start = text.endswith("\n")
        with suppress(OSError, ValueError):
            self._plain.write(stamp + text)

    def flush(self) -> None:
        """Does nothing: the file is written line by line."""


class Copied:
    """A text stream that also writes into the log; all other calls go to the stream."""

    def __init__(self, stream: Any, log: Log) -> None:
        self._stream, self._log = stream, log

    def write(self, text: str) -> int:
        self._log.write(text)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def launch_log(run: Run, script: str, *, is_dry_run: bool = False) -> Iterator[None]:
    """Writes a log during the `with` block; a dry run writes none.

    An error that leaves the block gets a note that names the log.
    """
    if is_dry_run:
        yield
        return
    started = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    place = run.location / LOGS / f"{started}-{script}-{socket.gethostname()}-{os.getpid()}.log"
    kept = _Kept(place)
    try:
        with _file(kept) as file:
            log = Log(file)
            handler = logging.StreamHandler(log)
            logging.getLogger().addHandler(handler)
            log.write(f"{' '.join(sys.argv)}\n")
            try:
                with _copied(sys.stdout, log, redirect_stdout), _copied(sys.stderr, log, redirect_stderr):
                    yield
            except BaseException as error:
                log.write("".join(traceback.format_exception(error)))
                raise
            finally:
                logging.getLogger().removeHandler(handler)
    except Exception as error:
        if kept.is_there:
            error.add_note(f"{LOG_NOTE}{place}")
        raise


@dataclass
class _Kept:
    """Where a log is kept, and whether it is there: there may be no right to write into the run."""

    place: Location
    is_there: bool = False
    size: int = 0  # bytes that are on S3


@contextmanager
def _file(kept: _Kept) -> Iterator[IO[str]]:
    """The open file of a log; one for S3 is uploaded at once, each `UPLOAD_SECONDS`, and when the block ends."""
    file, has_ended, place = _opened(kept), Event(), kept.place

    def upload() -> None:
        size = os.fstat(file.fileno()).st_size
        if size > kept.size:
            with suppress(OSError):  # the error that ended the job says more
                place.write_bytes(os.pread(file.fileno(), size, 0))
                kept.is_there, kept.size = True, size

    def upload_often() -> None:
        while not has_ended.is_set():
            upload()
            has_ended.wait(UPLOAD_SECONDS)

    thread = None if place.is_local else Thread(target=upload_often, daemon=True)
    try:
        if thread:
            thread.start()
        yield file
    finally:
        if thread:
            has_ended.set()
            thread.join()
            with suppress(OSError):
                file.flush()
            upload()
        with suppress(OSError):
            file.close()


def _opened(kept: _Kept) -> IO[str]:
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace", "buffering": 1}  # line by line
    if kept.place.is_local:
        with suppress(OSError):
            os.makedirs(os.path.dirname(kept.place.uri), exist_ok=True)
            kept.is_there = True
            return open(kept.place.uri, "w", **text)
        kept.is_there = False
    return TemporaryFile("w+", **text)


def _copied(stream: Any, log: Log, redirect: Any) -> Any:
    return nullcontext() if stream is None else redirect(Copied(stream, log))  # no output: started with `>&-`
