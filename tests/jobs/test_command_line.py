"""Every job from outside: wrong input is one sentence on stderr and exit code 2."""

import errno
import importlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.errors import ClusterError
from jobs.cli import command_line, entry_point
from jobs.cli.command_line import Stopped, job_parser, run_main
from jobs.cli.entry_point import COMMANDS, overview
from jobs.cli.step_command import step_parser
from jobs.steps import compute
from jobs.steps.restarted import restarted
from storage.errors import StorageError

REPOSITORY = Path(__file__).parents[2]
JOBS = sorted(file for file in (REPOSITORY / "jobs").glob("*.py") if "run_main(" in file.read_text())
JOBS = [file for file in JOBS if file.name not in ("command_line.py", "entry_point.py")]


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
    assert {"status": "--json", "compare": "RUN [RUN ...]"}.get(job, "--set KEY=VALUE") in answer.stdout


def test_what_only_reads_a_run_imports_nothing_slow():
    """torch and ray take seconds and half of the memory that a driver of millions of images may have."""
    script = """if True:
        import sys
        import jobs.reporting.run_status
        print(sorted({"torch", "ray", "zarr", "s3fs"} & sys.modules.keys()))
        import jobs.preparation.adding, jobs.preparation.prepare, jobs.preparation.read_source, jobs.reporting.page
        print(sorted({"torch", "ray", "s3fs"} & sys.modules.keys()))
    """
    answer = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert answer.stdout == "[]\n[]\n", answer.stderr


def test_workers_that_read_and_write_maps_import_no_torch():
    """Each of them would need seconds of a core for it, before a GPU gets its first image."""
    script = """if True:
        import sys
        import jobs.maps.map_stages
        print(sorted({"torch", "numba", "matplotlib"} & sys.modules.keys()))
    """
    answer = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert answer.stdout == "[]\n", answer.stderr


def test_help_imports_nothing_slow():
    script = """if True:
        import importlib, sys
        for name in sys.argv[1:]:
            importlib.import_module(f"jobs.{name}")
        print(sorted({"pyarrow", "pydantic", "torch", "ray", "zarr"} & sys.modules.keys()))
    """
    command = [sys.executable, "-c", script, *(file.stem for file in JOBS)]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert answer.stdout == "[]\n", answer.stderr


def test_a_script_is_run_from_a_clone_that_is_not_installed(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(REPOSITORY / "jobs/status.py"), "--run", str(tmp_path / "nothing")]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("status: ") and answer.stderr.count("\n") == 1


def test_every_job_has_a_command_and_the_overview_names_it():
    assert sorted(COMMANDS.values()) == [file.stem for file in JOBS]
    lines = [line.split() for line in overview().splitlines() if line.startswith("  ")]
    assert [words[0] for words in lines] == list(COMMANDS) and all(len(words) > 4 for words in lines)


@pytest.fixture
def run_command(capsys, monkeypatch) -> Callable[..., Answer]:
    """`ficklenet` with these arguments, in this process."""

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
        monkeypatch.setattr(sys, "argv", ["/usr/bin/ficklenet", *arguments])
        with pytest.raises(SystemExit) as end:
            entry_point.main()
        captured = capsys.readouterr()
        return Answer(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself_by_the_name_that_was_typed(command, run_command):
    answer = run_command(command, "--help")
    assert answer.code == 0
    assert answer.stdout.startswith(f"usage: ficklenet {command} [-h] ")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "--run", "/tmp/does/not/exist"], "ficklenet status: /tmp/does/not/exist does not exist. Is"),
        (["maps", "--rum", "/tmp/x"], "ficklenet maps: --rum: unknown argument. Did you mean --run?"),
        (["run"], "ficklenet run: give --run PATH of a prepared run, or --demo."),
    ],
)
def test_a_command_speaks_by_the_name_that_was_typed_and_ends_with_its_jobs_exit_code(arguments, sentence, run_command):
    answer = run_command(*arguments)
    assert answer.code == 2
    assert answer.stderr.startswith(sentence) and answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--help"], 0, ""),
        ([], 2, "ficklenet: give a command. Commands: prepare, train, maps, "),
        (["seed"], 2, "ficklenet: seed: unknown command. Did you mean seeds?"),
        (["generate_maps"], 2, "ficklenet: generate_maps: unknown command. Did you mean maps?"),
    ],
)
def test_a_wrong_command_is_answered_in_one_sentence(arguments, code, sentence, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ficklenet", *arguments])
    with pytest.raises(SystemExit) as end:
        entry_point.main()
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--rum", "/tmp/x", "--format", "png"], "export: --rum: unknown argument. Did you mean --run?"),
        (["--run", "/tmp/x", "--fromat=png"], "export: --fromat: unknown argument. Did you mean --format?"),
        (["--run", "/tmp/x", "--format", "png", "more"], "export: more: unknown argument. See --help."),
        (["--format", "png"], "export: the following arguments are required: --run. See --help."),
    ],
)
def test_a_misspelt_flag_is_named_even_where_the_right_one_is_missing(arguments, sentence, capsys):
    parser = job_parser("export", "")
    parser.add_argument("--format", required=True)
    with pytest.raises(SystemExit):
        parser.parse_args(arguments)
    assert capsys.readouterr().err == f"{sentence}\n"


@pytest.mark.parametrize("typed", ["--restart pseudo-labels", "--restart=pseudo-labels", "--restart pseudo_labels"])
def test_a_refused_value_is_repeated_as_it_was_typed(typed, capsys):
    with pytest.raises(SystemExit):
        step_parser("seeds", "").parse_args(["--run", "/data/x", *typed.split()])
    assert f": given '{typed[10:]}', allowed: seeds." in capsys.readouterr().err


def test_the_console_entry_point_is_that_command():
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"ficklenet": f"{entry_point.__name__}:{entry_point.main.__name__}"}


@pytest.mark.parametrize(
    ("job", "arguments", "sentence"),
    [
        ("generate_maps", ["--run", "/tmp/x", "--shrad", "1/2"], "--shrad: unknown argument. Did you mean --shard?"),
        ("run_pipeline", ["--run", "/tmp/x", "--restart", "seeds"], "Each step's own command has it, such as 'aggre"),
        ("generate_maps", ["--run", "/tmp/x", "--shard", "3/2"], "--shard '3/2': expected I/N with 1 <= I <= N"),
        ("generate_maps", ["--run", "/tmp/x", "--set", "maps.num_sample=3"], "Did you mean maps.num_samples?"),
        ("generate_maps", ["--run", "/tmp/does/not/exist"], "'python jobs/prepare_dataset.py --run /tmp/does"),
        (
            "export_labels",
            ["--run", "/tmp/x", "--format", "pgn"],
            "given 'pgn', allowed: png, npy, coco, yolo, cvat, label-studio, cityscapes, hugging-face. Did you",
        ),
        ("report", ["--run", "/tmp/x", "--run=/tmp/y"], "--run: given twice, but a job works on one run"),
        ("report", ["--images", "3", "--run", "/tmp/x", "--images", "4"], "--images: given twice, but it has one"),
        ("evaluate", ["--run", "/tmp/x", "--sweep", "seeds.theta=1", "--resolution", "both"], "map resolution alone"),
        ("prepare_dataset", ["--run", "/tmp/x", "--images", "/tmp/y", "--split", "val"], "--split: says how a source"),
        ("compare", ["/tmp/x", "/tmp/y", "--images", "3"], "so it needs --page FILE"),
        ("generate_maps", ["--run", "gs://bucket/run"], "expected a local path or s3://bucket/prefix"),
        ("prepare_dataset", ["--run", "/tmp/x", "--voc", "/tmp/nowhere"], "no lists in ImageSets and no XML files"),
        ("prepare_dataset", ["--run", "/tmp/x", "--csv", "/tmp/nowhere.csv"], "/tmp/nowhere.csv: no such file"),
        ("prepare_dataset", ["--run", "/tmp/x", "--csv", "a", "--masks", "b"], "--masks does not go with --csv"),
        ("train_ficklenet", ["--run", "/tmp/does/not/exist"], "does not exist"),
    ],
)
def test_wrong_input_is_answered_in_one_sentence(job, arguments, sentence, run_job):
    answer = run_job(job, *arguments)
    assert answer.code == 2
    assert sentence in answer.stderr
    assert answer.stderr.startswith(f"{job}: ")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


@pytest.mark.parametrize("arguments", ["status --run {run}", "report --run {run} --dry-run", "--help"])
def test_a_reader_who_has_gone_ends_a_job_without_a_word(arguments, finished_maps_run):
    reading, writing = os.pipe()
    os.close(reading)
    words = arguments.format(run=finished_maps_run.uri).split()
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli.entry_point", *words], stdout=writing, stderr=-1, cwd=REPOSITORY
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("output", ["closed pipe", "closed", "full"])
def test_a_refusal_is_said_whatever_became_of_the_output(output, finished_maps_run):
    """Something lies in the output's buffer when the refusal comes."""
    script = "import jobs.cli.command_line as c; c.run_main(lambda given: print('begun') or int('x'))"
    redirection = {"closed": ">&-", "full": ">/dev/full", "closed pipe": "| true"}[output]
    command = f'PYTHONUNBUFFERED= "{sys.executable}" -c "{script}" {redirection}'
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "invalid literal" in done.stderr


def test_a_job_without_an_output_ends_well():
    script = "import jobs.cli.command_line as c; c.run_main(lambda given: None)"
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{script}" >&-'], capture_output=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, b"")


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
    monkeypatch.setattr(compute, "connected", lambda *_, **__: pytest.fail("a Ray was started"))
    with pytest.raises(ValueError, match="has no manifest"):
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


def test_a_sigterm_that_ray_makes_another_exception_of_is_called_by_its_name(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.setattr(Stopped, "has_come", False)

    def in_a_wait(_: list[str]) -> None:
        try:
            command_line._stop()
        except Stopped:
            raise KeyboardInterrupt from None  # by Ray's compiled code

    def at_the_start(_: list[str]) -> None:
        sys.exit(signal.SIGTERM)  # by Ray's handler

    for main in (in_a_wait, at_the_start):
        with pytest.raises(SystemExit) as end:
            run_main(main, [])
        assert (end.value.code, capsys.readouterr().err) == (143, "stopped; the same command continues.\n")


def test_a_stopped_preparation_is_not_said_to_continue(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.setattr(sys, "argv", ["jobs/prepare_dataset.py"])

    def main(_: list[str]) -> None:
        raise Stopped

    with pytest.raises(SystemExit):
        run_main(main, [])
    assert capsys.readouterr().err == "stopped; the same command begins again.\n"
    assert set(COMMANDS.values()) > command_line._BEGIN_AGAIN


def test_a_bucket_that_does_not_exist_is_wrong_input(run_job, s3_environment):
    answer = run_job("status", "--run", "s3://no-such-bucket/run")
    assert answer.code == 2 and "the bucket does not exist; create it or correct the path" in answer.stderr


def test_a_pipeline_without_ray_on_s3_is_refused_before_its_first_step(s3_run, run_job):
    for name in ("model.pt", "complete.json"):  # a trained classifier
        assert (s3_run.location / "classifier" / name).exists()
    answer = run_job("run_pipeline", "--run", s3_run.uri, "--set", "cluster.address=in-process")
    assert answer.code == 2 and "Give a local run, or train with Ray" in answer.stderr
    assert "step 1 of" not in answer.stdout


def test_a_restart_that_did_not_end_is_continued_without_its_flag(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers

    def ends_with(error: BaseException, *, is_deleted: bool = True, flags: str = "--restart maps") -> str:
        def main(_: list[str]) -> None:
            with restarted(is_deleted):
                raise error

        with pytest.raises(SystemExit):
            run_main(main, flags.split())
        return capsys.readouterr().err

    assert ends_with(Stopped()) == "stopped; without --restart the same command continues.\n"
    lost = ends_with(StorageError("s3://bucket: connection lost."))
    assert lost.endswith(": to continue, leave out --restart, which would delete the results again.\n")
    assert "--restart" not in ends_with(ClusterError("refused before anything was deleted."), is_deleted=False)
    assert ends_with(Stopped(), is_deleted=False) == "stopped; the same command continues.\n"
    assert ends_with(Stopped(), flags="--redo-outdated") == "stopped; the same command continues.\n"


def test_a_full_disk_is_one_sentence_wherever_it_is_met(monkeypatch, capsys):
    def main(_: list[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    with pytest.raises(SystemExit) as end:
        run_main(main, [])
    assert end.value.code == 1
    assert capsys.readouterr().err.endswith(
        ": the disk or quota is full; free some space, then run the same command again.\n"
    )


def test_debug_prints_no_request_of_s3(monkeypatch, capfd):
    """Requests carry signatures and session tokens, which botocore logs at the level of debugging."""

    def main(_: list[str]) -> None:
        logging.getLogger("botocore.auth").debug("x-amz-security-token:SECRET")
        logging.getLogger("jobs").debug("a line of ours")

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    with pytest.raises(SystemExit):
        run_main(main, ["--debug"])
    printed = capfd.readouterr().err
    assert "a line of ours" in printed and "SECRET" not in printed


def test_control_characters_of_names_do_not_reach_the_terminal(monkeypatch, capfd):
    def main(_: list[str]) -> None:
        sys.stdout.write("a class named \x1b]0;title\x07 or \x9b31m\rmaps: done; Läufe\tand a bar\n")
        sys.stderr.write("\rmaps: 50%")
        logging.getLogger("jobs").warning("of host \x1b[2J")
        raise ValueError("no image \x1b[31m here")

    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process of its own
    with pytest.raises(SystemExit):
        run_main(main, [])
    out, err = capfd.readouterr()
    assert out == "a class named \\x1b]0;title\\x07 or \\x9b31m\\rmaps: done; Läufe\tand a bar\n"
    assert err.startswith("\rmaps: 50%") and "host \\x1b[2J" in err and "image \\x1b[31m here" in err


def test_names_beyond_ascii_are_printed_where_the_output_is_ascii(finished_maps_run, tmp_path):
    folder = tmp_path / "Läufe ß"
    shutil.copytree(finished_maps_run.uri, folder)
    command = [sys.executable, "jobs/status.py", "--run", str(folder)]
    ascii_output = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=ascii_output, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and r"L\xe4ufe \xdf: 14 images" in done.stdout
    ascii_locale = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(command, env=ascii_locale, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0 and "Läufe ß: 14 images" in done.stdout
    broken = subprocess.run([*command[:-1], b"/data/K\xe4se"], cwd=REPOSITORY, capture_output=True, text=True)
    assert broken.returncode == 2 and "/data/K\\udce4se: contains bytes that are no UTF-8 letters" in broken.stderr
    assert len(broken.stderr.splitlines()) == 1
