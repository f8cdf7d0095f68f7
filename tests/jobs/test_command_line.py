"""Every job from outside: wrong input is one sentence on stderr and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
JOBS = sorted(file for file in (REPOSITORY / "jobs").glob("*.py") if "run_main(" in file.read_text())
JOBS = [file for file in JOBS if file.name != "command_line.py"]


def run_job(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"jobs/{name}.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("job", [file.stem for file in JOBS])
def test_every_job_explains_itself(job):
    answer = run_job(job, "--help")
    assert answer.returncode == 0
    assert "--set KEY=VALUE" in answer.stdout


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
def test_wrong_input_is_answered_in_one_sentence(job, arguments, sentence):
    answer = run_job(job, *arguments)
    assert answer.returncode == 2
    assert sentence in answer.stderr
    assert answer.stderr.startswith(f"{job}: ")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""
