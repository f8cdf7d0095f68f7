"""Own Rays that live and die with their process, and clusters that are joined and left as they were."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.connect import Connection, _join, connect, resources, start_optional_ray
from cluster.errors import ClusterError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray Data warns of its own settings

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import os, sys
import psutil
sys.path.insert(0, {root!r})
from cluster.connect import connect
from cluster.fanout import Pool, Stages, fan_out

def where(payload):
    import storage  # a package of the checkout, in a worker
    return payload | {{"worker": os.getpid()}}

def main():
    with connect({address!r}, num_cpus=2) as connection:
        print("cpus", connection.num_cpus)
        stages = Stages(lambda: where, where, where)
        for receipt in fan_out([{{"unit": n}} for n in range(3)], stages, Pool()):
            print("unit", receipt["unit"])
        children = psutil.Process().children(recursive=True)
        print("children", *(child.pid for child in children))
        ours = {{child.pid for child in children}}
        listening = {{c.laddr.ip for c in psutil.net_connections("inet") if c.pid in ours and c.status == "LISTEN"}}
        print("listening", *sorted(listening))

if __name__ == "__main__":
    main()
"""


def run_script(folder: Path, address: str | None, **environment: str) -> dict[str, list[str]]:
    """Runs the script in a folder that is no checkout; the words after the first of each line of its output."""
    script = folder / "job.py"
    script.write_text(textwrap.dedent(SCRIPT).format(root=str(ROOT), address=address))
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    output: dict[str, list[str]] = {}
    for first, *rest in lines:
        output.setdefault(first, []).extend(rest)
    return output | {"stderr": done.stderr.splitlines()}


def test_a_script_without_installation_runs_on_its_own_ray_and_leaves_nothing(tmp_path: Path) -> None:
    output = run_script(tmp_path, None)
    assert set(output) == {"cpus", "unit", "children", "listening", "stderr"}, "Ray talks into the job's output"
    assert output["cpus"] == ["2.0"]
    assert sorted(output["unit"]) == ["0", "1", "2"]
    assert all(ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for ip in output["listening"]), output["listening"]
    assert len(output["stderr"]) <= 1, output["stderr"]  # Ray's core names its log level
    assert output["children"]
    assert not alive_after(10, [int(pid) for pid in output["children"]])


def alive_after(seconds: float, pids: list[int]) -> list[str]:
    """What is left of these processes; Ray kills its workers as it goes, and a busy machine reaps them late."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [f"{process.pid} {process.name()} {process.status()}" for process in alive]


@pytest.fixture
def standing_cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray that somebody else has started, with a token of its own: its address, and how to be let in."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path: Ray puts sockets there
    token = Path(folder, "token")
    token.write_text(uuid.uuid4().hex)
    access = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment = os.environ | access | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--block", "--port=0", "--num-cpus=3", "--include-dashboard=false"]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert head.stdout is not None
        address = next(line.split("'")[1] for line in head.stdout if "--address=" in line)
        yield address, access
    finally:
        head.terminate()
        head.wait(timeout=30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.cluster
def test_a_joined_cluster_is_used_and_left_running(
    standing_cluster: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, access = standing_cluster
    output = run_script(tmp_path, None, **access, RAY_ADDRESS=address)
    assert output["cpus"] == ["3.0"], "not the standing cluster"
    assert sorted(output["unit"]) == ["0", "1", "2"]
    host, port = address.rsplit(":", 1)
    socket.create_connection((host, int(port)), timeout=5).close()  # it still answers


def test_no_cluster_at_the_address_is_one_sentence(tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cluster.connect import connect\n"
    script += "with connect('127.0.0.1:1'): pass"
    begin = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert "ClusterError: cluster: the Ray at '127.0.0.1:1' does not answer." in done.stderr.splitlines()[-1]
    assert time.monotonic() - begin < 60


def test_an_address_that_was_left_in_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"'127.0.0.1:1' \(of the variable RAY_ADDRESS\) does not answer"):
        _join("127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"'127.0.0.1:2' does not answer"):
        _join("127.0.0.1:2")


def test_connecting_again_shares_the_ray_and_leaves_it_alive(local_ray: Connection) -> None:
    with connect() as again:
        assert again == local_ray
    assert resources() == local_ray
    assert resources().is_own


@pytest.mark.cluster
def test_a_worker_that_dies_while_its_ray_starts_keeps_nobody_waiting() -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ray
from cluster.connect import connect, resources
with connect("local", num_cpus=3):
    resources()
    print(ray.get(ray.remote(lambda: "answer").remote()))
"""
    driver = psutil.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    killed = False
    while not killed and driver.poll() is None:
        for child in driver.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                name = "".join(child.cmdline()[:1])
                if name.startswith("ray::") and not name.endswith("Agent") and not killed:
                    child.kill()
                    killed = True
    out, _ = driver.communicate(timeout=60)
    assert killed and out == "answer\n"


@pytest.mark.cluster
def test_an_own_ray_starts_with_the_first_work(tmp_path: Path) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import ray
from cluster.connect import connect, resources
with connect("local", num_cpus=3) as foretold:
    print(ray.is_initialized(), foretold.is_to_start)
    with connect() as inner:
        print(ray.is_initialized(), inner == foretold)
    print(resources() == foretold, resources().is_to_start, ray.is_initialized())
print(ray.is_initialized())
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True)
    assert done.stdout.split() == ["False", "True", "False", "True", "True", "False", "True", "False"]


def test_in_process_starts_nothing() -> None:
    with connect("in-process") as connection:
        assert connection.in_process
        assert (connection.num_gpus, connection.num_nodes) == (0, 1)


@pytest.mark.parametrize(("address", "is_optional"), [("", True), (None, True), ("local", False)])
def test_a_local_ray_is_optional_unless_it_is_asked_for(address, is_optional, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.connect._promised", [])
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the Ray of other tests does not count, and lives on
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with connect(address) as connection, connect() as inner:
        assert (connection.is_optional, inner.is_optional) == (is_optional, is_optional)


def test_an_optional_ray_that_does_not_start_is_tried_once(monkeypatch) -> None:
    tried = []

    def refuse(_: int) -> None:
        tried.append(1)
        raise ClusterError("cluster: it did not start.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("cluster.connect._promised", [])
    monkeypatch.setattr("cluster.connect._start", refuse)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # the Ray of other tests does not count
    monkeypatch.setattr("ray.shutdown", lambda: None)
    with connect():
        said: list[str] = []
        assert not start_optional_ray(said.append) and not start_optional_ray(said.append)
        assert tried == [1] and said == ["cluster: it did not start"]
    with connect(), pytest.raises(ClusterError):  # for what was asked for, it is tried again
        resources()


def test_resources_name_the_remedy_when_too_much_is_asked() -> None:
    Connection(num_cpus=4, num_gpus=2, num_nodes=1).require(cpus=4, gpus=2, purpose="2 compute actors")
    with pytest.raises(ClusterError, match=r"^cluster: 4 compute actors need 4 GPUs, but the cluster has 2\. "):
        Connection(num_cpus=4, num_gpus=2, num_nodes=1).require(cpus=4, gpus=4, purpose="4 compute actors")
    no_gpu = r"has 0\. To use the CPU, give --set maps\.device=cpu\. To .* --set cluster\.autoscaling=true\.$"
    with pytest.raises(ClusterError, match=no_gpu):
        Connection(4, 0, num_nodes=1).require(cpus=1, gpus=1, purpose="1 compute actor", device_key="maps.device")
