"""A local path or an ``s3://`` key, with the same behaviour.

A written object appears whole or not at all. A location is a value: it is hashable, can be pickled, and is opened only
when it is used.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self
from uuid import uuid4

from storage.errors import StorageError
from storage.s3 import file_system, is_bucket_missing, server_code, storage_errors

if TYPE_CHECKING:
    from zarr.abc.store import Store

_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?")
_DELETE_BATCH = 1000  # S3's limit for one DeleteObjects request
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class IrregularFile(ValueError):  # noqa: N818  a finding about data, not a fault
    """A file was expected, but there is a FIFO, a device or a socket. The message says which."""


class TooLarge(ValueError):  # noqa: N818  a finding about data, not a fault
    """An object has more bytes than allowed."""


@dataclass(frozen=True, order=True)
class Location:
    """A file, object, folder or prefix. Make it with `Location.parse`; ``location / "child"`` is a place inside it.

    Attributes:
        uri: an absolute local path, or ``s3://bucket/key`` without a trailing slash.
    """

    uri: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a location as people write it: ``runs/a``, ``~/runs/a``, ``file:///runs/a`` or ``s3://bucket/a``.

        Raises:
            ValueError: the scheme is unknown, there is no bucket, or an S3 key has ``..`` in it.
        """
        text = text.removeprefix("file://")
        if re.match(r"s3(:(?!//)|//)", text, re.IGNORECASE):
            raise ValueError(
                f"location {text!r}: begins nearly, but not exactly, with 's3://'; expected s3://bucket/prefix, or "
                f"'./{text}' for a local path of this name."
            )
        if not text or "\0" in text:
            raise ValueError(f"location {text!r}: expected a local path or s3://bucket/prefix.")
        if not re.match(r"[a-zA-Z0-9+.-]+:/", text):
            return cls(os.path.abspath(os.path.expanduser(text)))
        key = text.rstrip("/")
        if not _S3.fullmatch(key) or not {"", ".", ".."}.isdisjoint(key.split("/")[3:]):
            raise ValueError(f"location {text!r}: expected a local path or s3://bucket/prefix (no '//', no '..').")
        return cls(key)

    def __truediv__(self, child: str) -> "Location":
        """A place inside this one, never outside it.

        Raises:
            ValueError: ``child`` is absolute, or has an empty, ``.`` or ``..`` part.
        """
        parts = child.split("/")
        if not {"", ".", ".."}.isdisjoint(parts) or "\0" in child:
            raise ValueError(f"{child!r} is not a name in {self.uri}: no leading '/', no empty, '.' or '..' part.")
        return Location("/".join([self.uri.rstrip("/"), *parts]))

    def __str__(self) -> str:
        return self.uri

    @property
    def is_local(self) -> bool:
        return not self.uri.startswith("s3://")

    @property
    def name(self) -> str:
        """The last part, such as ``maps`` for ``s3://bucket/run/maps``."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The folder or prefix that contains it."""
        return Location(self.uri.rsplit("/", 1)[0])

    # Whole objects

    def read_bytes(self) -> bytes:
        """All bytes of the object.

        Raises:
            FileNotFoundError: there is no such object.
            IsADirectoryError, NotADirectoryError: it is a local folder, or a part of the path is a local file.
            StorageError: the store failed.
        """
        with storage_errors(self.uri):
            if self.is_local:
                return Path(self.uri).read_bytes()
            return file_system().cat_file(self.uri, max_concurrency=1)  # one GET, no HEAD before it

    def read_start(self, num_bytes: int) -> bytes:
        """The object's first bytes, for data that nobody has checked. It never waits for ever.

        Raises:
            IrregularFile: it is not a regular file. A FIFO may never answer, and a device may never end.
            FileNotFoundError, IsADirectoryError, NotADirectoryError, StorageError: as in `read_bytes`.
        """
        with storage_errors(self.uri):
            if self.is_local:
                return _read_regular(self.uri, num_bytes)
            try:
                return file_system().cat_file(self.uri, start=0, end=num_bytes, max_concurrency=1)  # one ranged GET
            except OSError as error:
                if server_code(error) == "InvalidRange":  # an empty object has no first byte
                    return b""
                raise

    def read_whole(self, max_bytes: int) -> bytes:
        """All bytes of the object, for data that nobody has checked.

        Raises:
            TooLarge: there are more than `max_bytes`.
            IrregularFile, FileNotFoundError, IsADirectoryError, NotADirectoryError, StorageError: as in `read_start`.
        """
        if self.is_local:
            with storage_errors(self.uri):
                _require_at_most(max_bytes, os.stat(self.uri).st_size)  # before anything is read
        data = self.read_start(max_bytes + 1)
        _require_at_most(max_bytes, len(data))
        return data

    def write_bytes(self, data: bytes) -> None:
        """Write or replace the object: locally with a temporary file, fsync and rename, on S3 with one put."""
        if self.is_local:
            with self.open_output() as file:
                file.write(data)
        else:
            with storage_errors(self.uri):
                file_system().pipe_file(self.uri, data)

    def create_bytes(self, data: bytes) -> bool:
        """Write the object only if it does not exist; False if another writer was first."""
        with storage_errors(self.uri):
            try:
                if self.is_local:
                    with _temporary_beside(Path(self.uri)) as (temporary, file):
                        file.write(data)
                        _sync(file)
                        os.link(temporary, self.uri)  # fails if the name is taken
                else:
                    file_system().pipe_file(self.uri, data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:  # for a taken key, some servers answer with another code than AWS
                if error.errno == errno.EINVAL and self.exists():
                    return False
                raise
        return True

    def exists(self) -> bool:
        """Whether there is a file or object with exactly this name; folders and prefixes do not count."""
        with storage_errors(self.uri):
            if self.is_local:
                return os.path.isfile(self.uri)
            try:
                return file_system().info(self.uri)["type"] == "file"
            except FileNotFoundError as error:
                if is_bucket_missing(error):
                    raise
                return False

    def delete(self) -> None:
        """Delete the object if it exists."""
        with storage_errors(self.uri):
            if self.is_local:
                Path(self.uri).unlink(missing_ok=True)
            else:
                _delete_keys([self.uri.removeprefix("s3://")])

    # Streams; errors inside the `with` block are translated too

    @contextmanager
    def open_input(self) -> Iterator[IO[bytes]]:
        """A seekable file for reading parts of an object, for example for pyarrow or for an image's header."""
        with storage_errors(self.uri):
            if self.is_local:
                with open(self.uri, "rb") as file:
                    yield file
            else:
                with file_system().open(self.uri, "rb", block_size=1 << 16) as file:
                    yield file

    @contextmanager
    def open_output(self) -> Iterator[IO[bytes]]:
        """A file to write. The object appears when the `with` block ends; if the block raises, it does not appear."""
        with storage_errors(self.uri):
            if self.is_local:
                with _temporary_beside(Path(self.uri)) as (temporary, file):
                    yield file
                    _sync(file)
                    os.replace(temporary, self.uri)
            else:
                with tempfile.NamedTemporaryFile() as file:
                    yield file
                    file.flush()
                    file_system().put_file(file.name, self.uri)

    # Folders and prefixes

    def list_names(self) -> list[str]:
        """The sorted names directly in this folder or prefix, from a new listing; empty if it does not exist."""
        with storage_errors(self.uri):
            try:
                if self.is_local:
                    return sorted(os.listdir(self.uri))
                entries = file_system().ls(self.uri, detail=False, refresh=True)
            except FileNotFoundError as error:
                if is_bucket_missing(error):
                    raise
                return []
        below = self.uri.removeprefix("s3://") + "/"  # a prefix that is also an object lists itself
        return sorted({entry.removeprefix(below).strip("/") for entry in entries if entry.startswith(below)} - {""})

    def usage(self) -> tuple[int, int]:
        """The number of objects in this folder or prefix and below, and the sum of their bytes."""
        with storage_errors(self.uri):
            if self.is_local:
                sizes = list(_local_sizes(self.uri))
            else:
                prefix = self.uri.removeprefix("s3://") + "/"
                found = file_system().find(self.uri, detail=True)
                sizes = [int(entry["size"]) for key, entry in found.items() if key.startswith(prefix)]
        return len(sizes), sum(sizes)

    def delete_tree(self) -> None:
        """Delete this folder or prefix with everything in it, if it exists."""
        with storage_errors(self.uri):
            if self.is_local:
                if os.path.isdir(self.uri):
                    shutil.rmtree(self.uri)
                return
            # Not fs.rm(recursive=True): it would read '*' and '[' in a prefix as a pattern.
            prefix = self.uri.removeprefix("s3://") + "/"
            keys = sorted(key for key in file_system().find(self.uri) if key.startswith(prefix))
            for start in range(0, len(keys), _DELETE_BATCH):
                _delete_keys(keys[start : start + _DELETE_BATCH])

    def zarr_store(self, *, read_only: bool = False) -> "Store":
        """This folder or prefix as a zarr store."""
        from zarr.storage import FsspecStore, LocalStore  # zarr takes half a second, and most locations do not need it

        if self.is_local:
            return LocalStore(self.uri, read_only=read_only)
        path = self.uri.removeprefix("s3://")
        return FsspecStore(file_system(asynchronous=True), read_only=read_only, path=path)


@contextmanager
def _temporary_beside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A file ``.<name>.<random>.partial`` beside ``path``. A SIGKILL may leave it behind; nothing reads it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(f"{path}: a part of this path is a file, not a folder.") from error
    temporary = path.with_name(f".{path.name[:100]}.{uuid4().hex}.partial")
    try:
        with open(temporary, "xb") as file:
            yield temporary, file
    finally:
        temporary.unlink(missing_ok=True)


def _read_regular(path: str, num_bytes: int) -> bytes:
    """The first bytes of a regular file. Anything else is refused, without waiting for data."""
    _require_regular(os.stat(path))  # because even opening may change a device
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a FIFO by now
    try:
        status = os.fstat(descriptor)
        _require_regular(status)
        wanted = min(num_bytes, status.st_size) or num_bytes  # files of the kernel have data, but the size 0
        data = os.read(descriptor, wanted)
        while len(data) < wanted and (more := os.read(descriptor, wanted - len(data))):
            data += more
    except BlockingIOError:  # a file of the kernel has no data at the moment
        return b""
    finally:
        os.close(descriptor)
    return data


def _require_regular(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(status.st_mode):
        raise IrregularFile(f"{_KINDS.get(stat.S_IFMT(status.st_mode), 'a special file')}, not a regular file")


def _require_at_most(max_bytes: int, num_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise TooLarge(f"more than {max_bytes:,} bytes")


def _local_sizes(folder: str) -> Iterator[int]:
    """The sizes of all files in a folder and below; files that disappear in the meantime are left out."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _local_sizes(entry.path)
                elif entry.is_file():
                    yield entry.stat().st_size
    except FileNotFoundError:
        return


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _delete_keys(paths: list[str]) -> None:
    bucket = paths[0].split("/", 1)[0]
    objects = [{"Key": path.split("/", 1)[1]} for path in paths]
    answer = file_system().call_s3("delete_objects", Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
    if refused := answer.get("Errors"):
        code = refused[0].get("Code", "without a reason")
        remedy = "allow s3:DeleteObject" if code == "AccessDenied" else "run the same command again"
        raise OSError(errno.EIO, f"the server refused to delete {len(refused):,} of the objects ({code}); {remedy}")
