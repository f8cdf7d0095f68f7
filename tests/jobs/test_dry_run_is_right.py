"""The dry run of the pipeline says what the real run then does, whatever was done to the run before."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.connect import connect
from jobs.cli import plans
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import run_pipeline
from jobs.cli.plans import plan_pipeline
from jobs.preparation.adding import add_images
from jobs.preparation.prepare import Options
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_epochs
from storage.manifest import Manifest
from storage.sources import Source, SourceImage


def launch(run: Run, name: str, *assignments: str, **options: bool) -> None:
    with connect("in-process") as connection:
        launch_step(open_run(run.uri, None, assignments), connection, name, **options)


@pytest.fixture
def finished_run(predicted_run) -> Run:
    launch(predicted_run, "pseudo_labels")
    return predicted_run


@pytest.fixture
def add(drawn_images, tmp_path) -> Callable[[Run], None]:
    """Adds five images to a run of 14, two of them to be predicted."""

    def add_five(run: Run) -> None:
        images = []
        for number, old in enumerate(drawn_images[:5]):
            place = tmp_path / f"added_{number}.jpg"
            shutil.copy(old.uri, place)
            images.append(SourceImage(place.stem, str(place), old.labels, "val" if number in (0, 4) else "train"))
        add_images(run, Source(images, run.manifest().class_names), Options())
        Manifest.forget()

    return add_five


def amounts_planned(printed: str) -> dict[str, tuple[int, ...]]:
    """By step: the units and images to do, or the epochs to do."""
    units = re.findall(r"^(\S+), dry run: (\d+) of \d+ units? to do \((\d+) of \d+ images?[;)]", printed, re.M)
    epochs = re.findall(r"^(\S+), dry run: (\d+) of \d+ epochs? to do", printed, re.M)
    return {name: tuple(map(int, numbers)) for name, *numbers in (*units, *epochs)}


def amounts_done(printed: str) -> dict[str, tuple[int, ...]]:
    """The same of a real run."""
    units = re.findall(r"^(\S+): (\d+) of \d+ units? to do \((\d+) of \d+ images?[;)]", printed, re.M)
    trained = re.findall(r"^(\S+): (?:already trained|trained in)", printed, re.M)
    epochs = [(name, len(re.findall(rf"^{name}: epoch \d+ of", printed, re.M))) for name in trained]
    return {name: tuple(map(int, numbers)) for name, *numbers in (*units, *epochs)}


def both(run: Run, capsys, *assignments: str, **options: bool) -> tuple[str, str]:
    """What the dry run and then the real run print."""
    printed = []
    for pipeline in (plan_pipeline, run_pipeline):
        capsys.readouterr()
        with connect("in-process") as connection:
            pipeline(open_run(run.uri, None, assignments), connection, **options)
        printed.append(capsys.readouterr().out)
    return printed[0], printed[1]


NOTHING = {
    "classifier": (0,),
    "maps": (0, 0),
    "seeds": (0, 0),
    "pseudo-labels": (0, 0),
    "segmenter": (0,),
    "predictions": (0, 0),
}


def test_of_a_finished_run(finished_run, capsys):
    planned, done = both(finished_run, capsys)
    assert amounts_planned(planned) == amounts_done(done) == NOTHING
    assert "what is left takes" not in planned and "time:" not in planned


def test_after_images_were_added(finished_run, add, capsys):
    epochs = len(read_epochs(finished_run.step("segmenter").data()))
    add(finished_run)
    planned, done = both(finished_run, capsys)
    # 14 images in units of 4: the last one grows, and there is another one
    new = {"maps": (2, 5), "seeds": (2, 7), "pseudo-labels": (2, 5), "predictions": (2, 2)}
    assert amounts_planned(planned) == amounts_done(done) == NOTHING | new
    for text in (planned, done):
        assert text.count("2 of 5 units to do (5 of 19 images; the results of 2 others in these units are copied)") == 2
        assert "2 of 2 units to do (2 of 4 images; the results of 2 others in these units are copied)" in text
    assert (
        "seeds: unit 000003 was finished with 2 images, and images were added to it, so all of it is computed" in done
    )
    assert "maps: 19 images done, 0 skipped, 0 left" in done and "predictions: 4 images done, 0 skipped, 0 left" in done
    assert f"segmenter, dry run: 0 of {epochs} epochs to do, because it is already trained.\n" in planned
    command = f"'python jobs/train_ficklenet.py --run {finished_run.uri} --restart classifier'"
    assert f"  trained before 5 images were added; its results stay valid. To train on all images: {command}" in planned
    assert planned.count("  time:    about") == 4 and "pipeline: what is left takes about" in planned


def test_what_is_left_names_a_step_of_which_the_time_is_not_known(finished_run, add, monkeypatch, capsys):
    add(finished_run)
    measured = plans.estimate_of_records
    monkeypatch.setattr(
        plans, "estimate_of_records", lambda *given, **how: None if given[2].name == "maps" else measured(*given, **how)
    )
    with connect("in-process") as connection:
        plan_pipeline(open_run(finished_run.uri), connection)
    end = ", without maps, the start of processes, the metrics and the report.\n"
    assert re.search(r"pipeline: what is left takes about .*" + end, capsys.readouterr().out)


def test_after_images_were_added_that_make_the_training_shorter(finished_run, add, capsys):
    launch(finished_run, "segmenter", "segmenter.min_steps=10", restart=True)  # 4 epochs of 3 steps
    launch(finished_run, "predictions", restart=True)
    add(finished_run)  # 3 epochs of 4 steps
    planned, done = both(finished_run, capsys)
    assert amounts_planned(planned) == amounts_done(done)
    assert "segmenter, dry run: 0 of 4 epochs to do, because it is already trained.\n" in planned


def test_a_training_that_is_not_finished_is_refused_before_the_first_step_if_images_were_added(
    finished_run, add, capsys
):
    Path(finished_run.uri, "segmenter/complete.json").unlink()
    shutil.rmtree(Path(finished_run.uri, "predictions"))
    add(finished_run)
    for pipeline in (plan_pipeline, run_pipeline):
        capsys.readouterr()
        with (
            connect("in-process") as connection,
            pytest.raises(
                ValueError, match=r"images were added .* not finished\. Begin again with --restart segmenter"
            ),
        ):
            pipeline(open_run(finished_run.uri), connection)
        assert "step 1" not in capsys.readouterr().out


def test_a_length_that_a_later_training_refuses_is_refused_before_the_first_step(finished_run, capsys):
    Path(finished_run.uri, "seeds/done/000001.json").unlink()
    for pipeline in (plan_pipeline, run_pipeline):
        capsys.readouterr()
        with connect("in-process") as connection, pytest.raises(ValueError, match="raised_epochs: absent -> 4"):
            pipeline(open_run(finished_run.uri, None, ["segmenter.min_steps=10"]), connection)
        assert "step 1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("step", "setting", "redone"),
    [
        ("seeds", "seeds.theta=0.3", {"segmenter": (2,), "predictions": (1, 2)}),
        (
            "classifier",
            "classifier.epochs=2",
            {
                "maps": (4, 14),
                "seeds": (4, 14),
                "pseudo-labels": (4, 14),
                "segmenter": (2,),
                "predictions": (1, 2),
            },
        ),
    ],
)
def test_after_the_restart_of_a_step(step, setting, redone, finished_run, capsys):
    launch(finished_run, step, setting, restart=True)
    planned, done = both(finished_run, capsys, redo_outdated=True)
    assert amounts_planned(planned) == amounts_done(done) == NOTHING | redone
    assert planned.count("  time:    about") == len(redone) and "pipeline: what is left takes about" in planned


def test_after_a_step_lost_a_unit(finished_run, capsys):
    Path(finished_run.uri, "maps/done/000001.json").unlink()
    planned, done = both(finished_run, capsys)
    assert amounts_planned(planned) == amounts_done(done) == NOTHING | {"maps": (1, 4)}


def test_with_settings_that_need_no_restart(finished_run, capsys):
    planned, done = both(finished_run, capsys, "maps.device=cpu", "classifier.checkpoint_minutes=1")
    assert amounts_planned(planned) == amounts_done(done) == NOTHING


def test_where_another_epochs_network_is_kept(trained_run, capsys):
    other = (trained_run.step("classifier").data() / "last.pt").read_bytes()
    launch(trained_run, "classifier", "classifier.epochs=2", restart=True)
    (trained_run.step("classifier").data() / "best.pt").write_bytes(other)
    with connect("in-process") as connection:
        run_pipeline(open_run(trained_run.uri), connection)
        for pipeline in (plan_pipeline, run_pipeline):
            with pytest.raises(ValueError, match="these steps are outdated"):
                pipeline(open_run(trained_run.uri, None, ["classifier.keep=best"]), connection)
    planned, done = both(trained_run, capsys, "classifier.keep=best", redo_outdated=True)
    assert amounts_planned(planned) == amounts_done(done) and amounts_done(done)["maps"] == (4, 14)
    assert "  keeps the network of the best epoch from now on.\n" in planned
