"""Every launch leaves a log in the run: what it printed, and the traceback of the error that ended it."""

import sys
import time
from datetime import datetime
from typing import IO
from uuid import uuid4

import pytest

from jobs import aggregate_seeds, status
from jobs.cli import launch_log as launch_log_module
from jobs.cli.command_line import run_main
from jobs.cli.launch_log import launch_log
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from storage.errors import StorageError
from storage.location import Location

TIME = len("2026-11-27 09:31:15 ")


def logs(run: Run) -> list[str]:
    folder = run.location / "logs"
    return [(folder / name).read_bytes().decode() for name in folder.list_names()]


def test_a_launch_leaves_what_it_printed_and_status_names_the_file(finished_maps_run, capsys):
    aggregate_seeds.main(["--run", finished_maps_run.uri])
    printed = capsys.readouterr().out
    (log,) = logs(finished_maps_run)
    assert "seeds: 14 images done" in printed
    lines = log.splitlines(keepends=True)
    assert "".join(line[TIME:] for line in lines[1:]) == printed  # the first line is the command
    status.main(["--run", finished_maps_run.uri])
    (name,) = (finished_maps_run.location / "logs").list_names()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"log of the latest launch: {finished_maps_run.uri}/logs/{name}"


def test_each_message_of_a_log_begins_with_its_time(trained_run, capsys):
    with launch_log(trained_run, "aggregate_seeds"):
        sys.stdout.write("begun, ")
        sys.stdout.write("done\n")
        sys.stdout.write("two\nlines\n")
    assert capsys.readouterr().out == "begun, done\ntwo\nlines\n"
    (log,) = logs(trained_run)
    _, first, second, third = log.splitlines()
    for line in (first, second):
        datetime.strptime(line[:TIME], "%Y-%m-%d %H:%M:%S ")
    assert (first[TIME:], second[TIME:], third) == ("begun, done", "two", "lines")


def test_a_launch_on_s3_that_is_killed_leaves_its_log(s3_environment, monkeypatch):
    monkeypatch.setattr(launch_log_module, "UPLOAD_SECONDS", 0.05)
    run = Run(Location.parse(f"s3://test-bucket/killed-{uuid4().hex}"), Config())
    with launch_log(run, "generate_maps"):
        deadline = time.monotonic() + 30
        sys.stdout.write("at work\n")
        while not any("at work" in log for log in logs(run)):  # what a killed launch would leave
            assert time.monotonic() < deadline
            time.sleep(0.05)
        sys.stdout.write("no end of line")
    (log,) = logs(run)
    assert log.splitlines()[-1].endswith("no end of line")


def test_a_dry_run_leaves_no_log(finished_maps_run, capsys):
    aggregate_seeds.main(["--run", finished_maps_run.uri, "--dry-run"])
    assert logs(finished_maps_run) == []


def test_an_error_is_one_sentence_then_the_log_with_its_traceback(trained_run, capsys):
    with pytest.raises(SystemExit) as end:
        run_main(aggregate_seeds.main, ["--run", trained_run.uri])
    assert end.value.code == 2
    sentence, where = capsys.readouterr().err.splitlines()
    assert "generate_maps.py" in sentence
    (name,) = (trained_run.location / "logs").list_names()
    assert where.endswith(f"log: {trained_run.uri}/logs/{name}")
    (log,) = logs(trained_run)
    assert "Traceback" in log and "NotYet" in log


def test_the_traceback_of_a_worker_is_in_the_log_alone(trained_run, capsys):
    def main(_: list[str]) -> None:
        with launch_log(trained_run, "generate_maps"):
            error = StorageError("s3://bucket: connection lost.")
            error.add_note("In stage 'write', in a worker:\nTraceback (most recent call last): ...")
            raise error

    with pytest.raises(SystemExit):
        run_main(main, [])
    sentence, where = capsys.readouterr().err.splitlines()
    assert sentence.endswith("s3://bucket: connection lost.") and "log: " in where
    (log,) = logs(trained_run)
    assert "In stage 'write', in a worker:\nTraceback" in log


def test_a_run_that_may_only_be_read_is_launched_without_a_log(trained_run, capsys):
    (trained_run.location / "logs").write_bytes(b"no folder can be made here")
    with launch_log(trained_run, "aggregate_seeds"):
        sys.stdout.write("works\n")
    assert capsys.readouterr().out == "works\n"


@pytest.mark.parametrize("place", ["folder", "bucket"])
def test_a_log_that_could_not_be_written_is_not_named(place, trained_run, s3_environment, capsys):
    run = trained_run if place == "folder" else Run(Location.parse("s3://no-such-bucket/run"), Config())
    if place == "folder":
        (run.location / "logs").write_bytes(b"no folder can be made here")

    def main(_: list[str]) -> None:
        with launch_log(run, "generate_maps"):
            raise ValueError("the true reason.")

    with pytest.raises(SystemExit):
        run_main(main, [])
    assert capsys.readouterr().err.splitlines()[-1].endswith("the true reason.")


def test_a_log_on_s3_is_written_when_the_launch_ends(location, trained_run, capsys):
    with launch_log(Run(location, trained_run.config), "aggregate_seeds"):
        sys.stdout.write("on any store\n")
    assert logs(Run(location, trained_run.config))[0].endswith("on any store\n")


def test_a_name_cannot_write_commands_of_a_terminal_into_the_log(trained_run, capsys):
    with launch_log(trained_run, "aggregate_seeds"):
        sys.stdout.write("a name \x1b]0;title\x07\n")
    (log,) = logs(trained_run)
    assert "\x1b" not in log and r"a name \x1b]0;title\x07" in log


def test_a_disk_without_room_for_the_log_changes_neither_the_output_nor_the_error(trained_run, monkeypatch, capsys):
    def full(_: object) -> IO[str]:
        return open("/dev/full", "w", buffering=1)

    def fail() -> None:
        with launch_log(trained_run, "aggregate_seeds"):
            sys.stdout.write("works\n")
            raise ValueError("the true reason")

    monkeypatch.setattr("jobs.cli.launch_log._opened", full)
    with pytest.raises(ValueError, match="the true reason"):
        fail()
    assert capsys.readouterr().out == "works\n"
