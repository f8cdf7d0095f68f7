"""The age of objects, measured with the clock of their store.

The clocks of hosts that share a store may differ by hours. The store uses one clock for the times of all its objects.
So an age is the difference of two such times, and the clocks of the hosts are not used.
"""

import os
import tempfile
import time
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from storage.location import Location
from storage.s3 import file_system, storage_errors


def object_ages(folder: Location, *, may_write: bool = False) -> dict[str, float]:
    """Seconds since each object directly in a folder or prefix was written, by name; empty if it does not exist.

    On S3, one listing has the times of the objects and of the server. A file system does not tell its time, so a
    temporary file is written to learn it. Without `may_write`, this host's clock is used; it can differ only on network
    file systems.

    Args:
        may_write: whether a temporary file may be written into the folder.
    """
    with storage_errors(folder.uri):
        return _local_ages(folder.uri, may_write) if folder.is_local else _s3_ages(folder.uri)


def _local_ages(folder: str, may_write: bool) -> dict[str, float]:
    times = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_file():
                        times[entry.name] = entry.stat().st_mtime
                except FileNotFoundError:
                    pass  # deleted in the meantime
    except (FileNotFoundError, NotADirectoryError):
        return {}
    now = time.time()
    if may_write and times:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".clock.", suffix=".partial") as probe:
            probe.write(b"?")
            probe.flush()
            now = os.stat(probe.name).st_mtime
    return {name: now - written for name, written in times.items()}


def _s3_ages(uri: str) -> dict[str, float]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    prefix = f"{key}/" if key else ""
    ages: dict[str, float] = {}
    page: dict[str, str] = {}
    while True:
        answer: dict[str, Any] = file_system().call_s3(
            "list_objects_v2", Bucket=bucket, Prefix=prefix, Delimiter="/", **page
        )
        now = _server_time(answer)
        for entry in answer.get("Contents", ()):
            if name := entry["Key"].removeprefix(prefix):
                ages[name] = (now - entry["LastModified"]).total_seconds()
        if not answer.get("IsTruncated"):
            return ages
        page = {"ContinuationToken": answer["NextContinuationToken"]}


def _server_time(answer: dict[str, Any]) -> datetime:
    return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
