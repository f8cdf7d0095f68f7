"""Every job from outside: wrong input is one sentence on stderr and exit code 2."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from jobs.command_line import Stopped, run_main

REPOSITORY = Path(__file__).parents[2]
JOBS = sorted(file for file in (REPOSITORY / "jobs").glob("*.py") if "run_main(" in file.read_text())
JOBS = [file for file in JOBS if file.name != "command_line.py"]


@dataclass(frozen=True)
class Answer:
    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run_job(capsys, monkeypatch) -> Callable[..., Answer]:
    """A job's command line in this process, as `run_main` ends it."""

    def run(name: str, *arguments: str) -> Answer:
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
        monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments])
        with pytest.raises(SystemExit) as end:
            run_main(importlib.import_module(f"jobs.{name}").main)
        captured = capsys.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.mark.parametrize("job", [file.stem for file in JOBS])
def test_every_job_explains_itself(job, run_job):
    answer = run_job(job, "--help")
    assert answer.code == 0
    assert ("--json" if job == "status" else "--set KEY=VALUE") in answer.stdout


def test_a_script_is_run_from_a_clone_that_is_not_installed(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(REPOSITORY / "jobs/status.py"), "--run", str(tmp_path / "nothing")]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("status: ") and answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("job", "arguments", "sentence"),
    [
        ("generate_maps", ["--run", "/tmp/x", "--shrad", "1/2"], "--shrad: unknown argument. Did you mean --shard?"),
        ("generate_maps", ["--run", "/tmp/x", "--shard", "3/2"], "--shard '3/2': expected i/n with 1 <= i <= n"),
        ("generate_maps", ["--run", "/tmp/x", "--set", "maps.num_sample=3"], "Did you mean maps.num_samples?"),
        ("generate_maps", ["--run", "/tmp/does/not/exist"], "Run 'python jobs/prepare_dataset.py --run /tmp/does"),
        ("generate_maps", ["--run", "gs://bucket/run"], "expected a local path or s3://bucket/prefix"),
        ("prepare_dataset", ["--run", "/tmp/x", "--voc", "/tmp/nowhere"], "no list 'train_aug' in ImageSets"),
        ("prepare_dataset", ["--run", "/tmp/x", "--csv", "/tmp/nowhere.csv"], "/tmp/nowhere.csv: no such file"),
        ("prepare_dataset", ["--run", "/tmp/x", "--csv", "a", "--split", "b"], "--split does not go with --csv"),
        ("train_ficklenet", ["--run", "/tmp/does/not/exist"], "holds no manifest"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(job, arguments, sentence, run_job):
    answer = run_job(job, *arguments)
    assert answer.code == 2
    assert sentence in answer.stderr
    assert answer.stderr.startswith(f"{job}: ")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("train_ficklenet", []),
        ("generate_maps", []),
        ("aggregate_seeds", []),
        ("make_pseudo_labels", []),
        ("train_segmentation", []),
        ("predict_masks", []),
        ("evaluate", []),
        ("export_labels", ["--format", "png"]),
        ("run_pipeline", []),
    ],
)
def test_run_without_a_manifest_is_refused_before_a_ray_is_started(job, arguments, tmp_path, monkeypatch):
    module = importlib.import_module(f"jobs.{job}")
    monkeypatch.setattr(module, "connected", lambda *_, **__: pytest.fail("a Ray was started"))
    with pytest.raises(ValueError, match="holds no manifest"):
        module.main(["--run", str(tmp_path), *arguments])


@pytest.mark.parametrize(
    ("interruption", "word", "code"), [(Stopped, "stopped", 143), (KeyboardInterrupt, "interrupted", 130)]
)
def test_an_interruption_that_compiled_code_wrapped_is_still_one(interruption, word, code, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers

    def main(_: list[str]) -> None:
        try:
            try:
                raise interruption
            except BaseException as stop:
                raise SystemError("_numba_unpickle returned a result with an exception set") from stop
        except SystemError as wrapped:
            raise SystemError("fold returned a result with an exception set") from wrapped

    with pytest.raises(SystemExit) as end:
        run_main(main, [])
    assert (end.value.code, capsys.readouterr().err) == (code, f"{word}; the same command continues.\n")
