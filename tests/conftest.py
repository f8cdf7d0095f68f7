"""Fixtures that every package's tests share: a real S3 server, and a `location` on disk and on that server."""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import boto3
import pytest

from cluster.allocator import keep_freed_memory
from storage.location import Location

# Ray's workers have a low priority by default. On two cores they would wait for the tests of the other process.
os.environ.setdefault("RAY_worker_niceness", "0")

keep_freed_memory()  # as every job does

# The imports of the tests make a million objects that live to the end; looking for garbage among them takes 5 s
gc.disable()

BUCKET = "test-bucket"
_START_SECONDS = 60
_folders = count()


def pytest_collection_finish() -> None:
    """Collects garbage from here on, but does not look at the objects of the imports."""
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class S3Server:
    """A running server; the owner may do everything, the guest may only read."""

    endpoint: str
    owner: tuple[str, str] = ("owner", "owner-secret")
    guest: tuple[str, str] = ("guest", "guest-secret")

    def environment(self, credentials: tuple[str, str]) -> dict[str, str]:
        """The variables with which any process reaches it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": credentials[0],
            "AWS_SECRET_ACCESS_KEY": credentials[1],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS from its package, a child of the test run on free loopback ports, with a fresh folder."""
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = _free_ports(8)
    server = S3Server(f"http://127.0.0.1:{ports[0]}")
    (folder / "identities.json").write_text(json.dumps(_identities(server)))
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(_command(folder, ports), cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(server, process, folder)
        yield server
    finally:
        process.kill()  # its orderly stop takes 25 s, and the folder is thrown away
        process.wait()


@pytest.fixture(scope="session")
def s3_environment(s3_server: S3Server) -> Iterator[S3Server]:
    """The server as this process's (and its children's) ``AWS_*`` environment, as the owner."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment(s3_server.owner).items():
            patch.setenv(name, value)
        yield s3_server


@dataclass(frozen=True)
class FaultyServer:
    """The S3 server behind `fault_proxy.py`; the environment already names the proxy."""

    endpoint: str

    def set(self, **faults: float | str) -> None:
        """Makes these faults happen from now on, and no others; see `fault_proxy.py`."""
        with urlopen(f"{self.endpoint}/-/faults", data=json.dumps(faults).encode(), timeout=30):
            pass

    def counts(self) -> dict[str, int]:
        """How often each fault has happened since."""
        with urlopen(f"{self.endpoint}/-/faults", timeout=30) as answer:
            return json.load(answer)


@pytest.fixture
def faulty_s3(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A proxy of the test's own before the S3 server, faultless until it is told otherwise."""
    command = [sys.executable, str(Path(__file__).with_name("fault_proxy.py")), s3_environment.endpoint]
    proxy = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert proxy.stdout is not None
        server = FaultyServer(proxy.stdout.readline().strip())
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        yield server
    finally:
        proxy.kill()
        proxy.wait()


@pytest.fixture(params=["local", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder on disk, then an empty prefix on a real S3 server."""
    if request.param == "local":
        return Location.parse(str(tmp_path / "folder"))
    request.getfixturevalue("s3_environment")
    return Location.parse(f"s3://{BUCKET}/{os.getpid()}-{next(_folders)}")


def _identities(server: S3Server) -> dict[str, object]:
    def identity(credentials: tuple[str, str], actions: list[str]) -> dict[str, object]:
        keys = {"accessKey": credentials[0], "secretKey": credentials[1]}
        return {"name": credentials[0], "credentials": [keys], "actions": actions}

    return {"identities": [identity(server.owner, ["Admin"]), identity(server.guest, ["Read", "List"])]}


def _command(folder: Path, ports: list[int]) -> list[str]:
    names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc"]
    names += ["volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
    return [
        str(Path(sys.executable).with_name("weed")),
        "server",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=64",
        "-volume.max=50",
        "-s3",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        *(f"-{name}={port}" for name, port in zip(names, ports, strict=True)),
    ]


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes], folder: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _is_listening(server):
        if process.poll() is not None or time.monotonic() > deadline:
            log = (folder / "log").read_text(errors="replace")
            raise RuntimeError(f"the S3 server did not start:\n{log[-2000:]}")
        time.sleep(0.1)
    key, secret = server.owner
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="ready", Body=b"1")  # the first write waits for a volume
    client.close()


def _is_listening(server: S3Server) -> bool:
    try:
        with urlopen(f"{server.endpoint}/healthz", timeout=1):
            return True
    except (URLError, ConnectionError, TimeoutError):
        return False
