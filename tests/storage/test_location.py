import os
import pickle
import resource
import threading
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ProfileNotFound

from storage.errors import StorageError
from storage.location import Location
from storage.s3 import file_system, storage_errors


def test_bytes_come_back_as_written(location: Location) -> None:
    place = location / "a/b.bin"
    place.write_bytes(b"first")
    place.write_bytes(b"second")
    assert place.read_bytes() == b"second"
    assert place.exists()
    assert location.list_names() == ["a"]


def test_a_missing_object_is_a_file_not_found_error(location: Location) -> None:
    assert not (location / "absent").exists()
    for read in (Location.read_bytes, lambda place: place.read_start(9), lambda place: place.open_input().__enter__()):
        with pytest.raises(FileNotFoundError) as raised:
            read(location / "absent")
        assert raised.value.filename == (location / "absent").uri


def test_a_folder_is_not_an_object(location: Location) -> None:
    (location / "folder/file").write_bytes(b"1")
    assert not (location / "folder").exists()


def test_listing_shows_new_and_deleted_names_at_once(location: Location) -> None:
    folder = location / "done"
    assert folder.list_names() == []
    for name in ("b.json", "a.json", "sub/c.json"):
        (folder / name).write_bytes(b"{}")
    assert folder.list_names() == ["a.json", "b.json", "sub"]
    (folder / "a.json").delete()
    (folder / "a.json").delete()
    assert folder.list_names() == ["b.json", "sub"]


def test_delete_tree_spares_names_that_begin_alike(location: Location) -> None:
    for name in ("maps/x", "maps/deep/y", "maps2/z", "maps.json"):
        (location / name).write_bytes(b"1")
    (location / "maps").delete_tree()
    (location / "never there").delete_tree()
    # Asked one by one: this server keeps listing a prefix whose objects are gone.
    left = [name for name in ("maps/x", "maps/deep/y", "maps2/z", "maps.json") if (location / name).exists()]
    assert left == ["maps2/z", "maps.json"]


def test_pattern_characters_in_names_are_just_characters(location: Location) -> None:
    (location / "run[1]*/x").write_bytes(b"1")
    (location / "run1/x").write_bytes(b"2")
    assert (location / "run[1]*/x").read_bytes() == b"1"
    (location / "run[1]*").delete_tree()
    assert not (location / "run[1]*/x").exists()
    assert (location / "run1/x").exists()


def test_create_lets_exactly_one_of_many_writers_win(location: Location) -> None:
    place = location / "step.json"
    results: list[tuple[int, bool]] = []
    threads = [
        threading.Thread(target=lambda i=i: results.append((i, place.create_bytes(b"writer %d" % i)))) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [i for i, won in results if won]
    assert len(results) == 6 and len(winners) == 1
    assert place.read_bytes() == b"writer %d" % winners[0]


def test_an_output_that_fails_leaves_the_old_object_and_no_other(location: Location) -> None:
    place = location / "manifest.parquet"
    place.write_bytes(b"old")

    def write_half() -> None:
        with place.open_output() as file:
            file.write(b"half of the new")
            raise KeyError("stop")

    with pytest.raises(KeyError):
        write_half()
    assert place.read_bytes() == b"old"
    assert location.list_names() == ["manifest.parquet"]


def test_streams_read_and_write_parts(location: Location) -> None:
    with (location / "stream").open_output() as file:
        file.write(b"0123")
        file.write(b"456789")
    with (location / "stream").open_input() as file:
        file.seek(6)
        assert file.read(2) == b"67"


def test_parse_writes_every_place_one_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Location.parse("runs/../a/").uri == str(tmp_path / "a")
    assert Location.parse(f"file://{tmp_path}/a").uri == str(tmp_path / "a")
    assert Location.parse("s3://bucket/run/").uri == "s3://bucket/run"
    assert Location.parse("~/a").uri == os.path.expanduser("~/a")
    assert (Location.parse("s3://bucket") / "x/y").uri == "s3://bucket/x/y"
    assert (Location.parse("s3://bucket") / "x/y").name == "y"


@pytest.mark.parametrize("text", ["", "gs://bucket/a", "http://host/a", "s3://", "s3://b/../c", "s3://b//c"])
def test_other_places_are_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a local path or s3://bucket/prefix"):
        Location.parse(text)


@pytest.mark.parametrize("text", ["s3:/bucket/a", "s3:bucket/a", "S3:/bucket/a", "s3//bucket/a"])
def test_a_missing_sign_does_not_make_a_local_folder_of_a_bucket(text: str) -> None:
    with pytest.raises(ValueError, match=r"begins nearly, but not exactly, with 's3://'; expected s3://bucket/prefix"):
        Location.parse(text)


@pytest.mark.parametrize("child", ["", "..", "../x", "a/../../x", "/etc/passwd", "a//b", ".", "a\0b"])
def test_a_child_never_leaves_its_folder(child: str) -> None:
    with pytest.raises(ValueError, match="is not a name in"):
        Location.parse("s3://bucket/run") / child


def test_a_location_travels_to_other_processes(location: Location) -> None:
    assert pickle.loads(pickle.dumps(location)) == location


# What is wrong with the store itself, on the real server


@pytest.fixture
def bucket(s3_environment, monkeypatch: pytest.MonkeyPatch):
    """The server, one attempt per request; credentials may be changed within a test."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return s3_environment


def test_a_missing_bucket_stops_with_one_sentence(bucket) -> None:
    place = Location.parse("s3://no-such-bucket/run/x")
    for action in (place.read_bytes, place.exists, place.list_names, lambda: place.write_bytes(b"1")):
        with pytest.raises(StorageError, match=r"^s3://no-such-bucket/run/x: the bucket does not exist; .*\.$"):
            action()


def test_wrong_and_insufficient_credentials_stop_without_naming_secrets(bucket, monkeypatch) -> None:
    place = Location.parse("s3://test-bucket/forbidden")
    place.write_bytes(b"1")
    for name, value in bucket.environment((bucket.owner[0], "not-the-secret")).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match="AWS_") as wrong:
        place.read_bytes()
    for name, value in bucket.environment(bucket.guest).items():
        monkeypatch.setenv(name, value)
    assert place.read_bytes() == b"1"
    with pytest.raises(StorageError, match="access denied") as insufficient:
        place.write_bytes(b"2")
    for error in (wrong, insufficient):
        assert "\n" not in str(error.value)
        assert "secret" not in str(error.value).replace("secret key does not", "")


def test_a_dead_endpoint_is_a_storage_error(bucket, monkeypatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        Location.parse("s3://test-bucket/x").read_bytes()


def test_a_write_that_the_disk_refuses_is_a_storage_error_and_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(StorageError, match=r"big: File too large\.$"):
            Location.parse(f"{tmp_path}/big").write_bytes(bytes(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_run_below_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(StorageError, match="is a file, not a folder"):
        Location.parse(f"{tmp_path}/file/run/x").write_bytes(b"1")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_a_full_disk_is_one_sentence_with_the_remedy() -> None:
    with pytest.raises(StorageError) as caught, storage_errors("/data/run"), open("/dev/full", "wb", 0) as full:
        full.write(b"1")
    assert str(caught.value) == (
        "/data/run: the disk or quota is full; free some space, then run the same command again."
    )


def test_usage_counts_objects_and_bytes_below_a_prefix(location: Location) -> None:
    assert (location / "maps").usage() == (0, 0)
    for name in ("maps/x", "maps/deep/y", "maps2/z"):
        (location / name).write_bytes(b"12345")
    assert (location / "maps").usage() == (2, 10)


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_missing_credentials_name_what_gives_them_and_the_endpoint_only_if_it_is_set(endpoint, monkeypatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for error in (NoCredentialsError(), ProfileNotFound(profile="mine")):
        with pytest.raises(StorageError) as refused, storage_errors("s3://bucket/run"):
            raise error
        remedies = ("a role", "AWS_PROFILE", "'aws sso login'", "AWS_ACCESS_KEY_ID")
        assert all(remedy in str(refused.value) for remedy in remedies)
        assert "AWS_ENDPOINT_URL" not in str(refused.value)
    with pytest.raises(StorageError) as unreachable, storage_errors("s3://bucket/run"):
        raise EndpointConnectionError(endpoint_url="http://127.0.0.1:9")
    assert ("AWS_ENDPOINT_URL" in str(unreachable.value)) == bool(endpoint)


@pytest.mark.parametrize(
    ("code", "remedy"), [("AccessDenied", "allow s3:DeleteObject"), ("InternalError", "run the same command again")]
)
def test_objects_that_the_server_does_not_delete_are_one_sentence_with_the_reason(
    code, remedy, s3_environment, monkeypatch
):
    place = Location.parse("s3://test-bucket/not-deleted")
    (place / "object").write_bytes(b"1")
    refusal = {"Errors": [{"Key": "not-deleted/object", "Code": code}]}
    monkeypatch.setattr(type(file_system()), "call_s3", lambda *_, **__: refusal)
    with pytest.raises(StorageError, match=rf"the server refused to delete 1 of the objects \({code}\); {remedy}\.$"):
        place.delete_tree()
