"""What a training's log leaves, on disk and on S3."""

import json
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.training.training_log import TrainingLog
from storage.location import Location


def mid_epoch(step: int) -> dict:
    losses = [(step - 5, 0.75), (step, 0.5)]
    return {"step": step, "losses": losses, "learning_rate": 0.25, "images_per_second": 8.0, "workers": 2}


def end_of_epoch(epoch: int, step: int) -> dict:
    return mid_epoch(step) | {"epoch": epoch, "loss": 0.625, "val_map": 0.875}


def read_events(folder: Location, tmp_path: Path) -> EventAccumulator:
    """TensorBoard's own reading of the event files."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in folder.list_names():
        if "tfevents" in name:
            (copy / name).write_bytes((folder / name).read_bytes())
    events = EventAccumulator(str(copy))
    events.Reload()
    return events


def test_metrics_reach_json_lines_and_tensorboard_at_once(location, tmp_path, capsys):
    with TrainingLog(location, "classifier", num_epochs=2) as log:
        log.add(mid_epoch(10))
        log.add(end_of_epoch(1, 20))
        events = read_events(location, tmp_path)  # before the training's end
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (5, 0.75),
        (10, 0.5),
        (15, 0.75),
        (20, 0.5),
    ]
    assert [(event.step, event.value) for event in events.Scalars("val_map")] == [(20, 0.875)]
    assert [event.step for event in events.Scalars("learning_rate")] == [10, 20]
    assert events.Scalars("images_per_second")[0].value == 8.0
    assert events.Scalars("workers")[0].value == 2
    (line,) = (location / "metrics.jsonl").read_bytes().splitlines()
    assert json.loads(line)["epoch"] == 1 and "losses" not in json.loads(line)
    assert "epoch 1 of 2 (loss 0.625, validation mAP 0.875, 8.0 images/s)" in capsys.readouterr().out


def test_log_goes_on_after_a_relaunch_and_replaces_an_epoch_trained_again(tmp_path):
    folder = Location(str(tmp_path / "classifier"))
    for epochs in ((1, 2), (2, 3)):
        with TrainingLog(folder, "classifier", num_epochs=3) as log:
            for epoch in epochs:
                log.add(end_of_epoch(epoch, 20 * epoch))
    assert [line["epoch"] for line in log.lines] == [1, 2, 3]
    assert [line["epoch"] for line in TrainingLog(folder, "classifier", 3).lines] == [1, 2, 3]


def test_launch_that_does_nothing_leaves_no_event_file(tmp_path):
    with TrainingLog(Location(str(tmp_path)), "classifier", num_epochs=1):
        pass
    assert list(tmp_path.iterdir()) == []


def test_start_up_is_not_taken_for_the_time_of_an_epoch(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("jobs.training.training_log.time.monotonic", lambda: now[0])
    with TrainingLog(Location(str(tmp_path)), "classifier", num_epochs=5) as log:
        for epoch, seconds in ((1, 100.0), (2, 110.0), (3, 120.0)):
            now[0] = seconds
            log.add(end_of_epoch(epoch, 20 * epoch))
    first, second, third = capsys.readouterr().out.splitlines()
    assert "left" not in first and second.endswith("about 30 s left") and third.endswith("about 20 s left")


def test_the_passes_of_a_frozen_backbone_are_no_part_of_the_pace(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("jobs.training.training_log.time.monotonic", lambda: now[0])
    with TrainingLog(Location(str(tmp_path)), "classifier", num_epochs=10) as log:
        for epoch, passes in ((1, 80.0), (2, 40.0), (3, 20.0), (4, 0.0)):  # and 2 s for the steps of an epoch
            now[0] += 2 + passes
            log.add(end_of_epoch(epoch, 20 * epoch) | {"backbone_seconds": passes})
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition(", ")[2] for line in lines[1:]] == ["about 56 s left", "about 34 s left", "about 12 s left"]
