"""One local Ray for all tests of the package; its CPUs are over-declared so that pools of several sizes fit."""

from collections.abc import Iterator

import pytest

from cluster.connect import Connection, connect, resources


@pytest.fixture(scope="session")
def local_ray(s3_environment: object) -> Iterator[Connection]:
    """An own Ray, which lasts as long as the tests do: later ones, those on S3 too, join it."""
    with connect("local", num_cpus=4):
        yield resources()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a cluster of their own come first: a process that has joined one Ray would stay with it."""
    items.sort(key=lambda item: "two_nodes" not in getattr(item, "fixturenames", ()))
