"""Partitions: three hosts on one machine, one of them cut off from the others and joined again, in mid-run.

    python tests/partition.py                                      all trials, about 10 minutes; as root, needs `ip`
    python tests/partition.py --trials suspended --seconds 20      one of them

The hosts are network namespaces on a bridge: one with an S3 server, two for drivers and workers. They share the disk
and the processors, but not the network: nothing outside of the namespaces can reach them. A host that is cut off loses
no process. In the end, every run must have the bytes of an undisturbed run with the settings in the step's record.
A launch may stop with one sentence; then the same command is given again.
"""

import argparse
import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}  # before Ray is imported

import chaos_faults  # noqa: E402
import conftest  # noqa: E402
import torch  # noqa: E402
from chaos_faults import MOST_SECONDS, Launch  # noqa: E402

from storage.location import Location  # noqa: E402
from storage.steps import Step  # noqa: E402

STORE, ONE, OTHER = "10.231.77.1", "10.231.77.2", "10.231.77.3"
NODE_PORT = 7000  # of Ray's node manager
SAMPLES = (60_000, 2_000)  # the first so many that a launch takes long enough to be cut off
_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NETWORK, _NEW_HOST_NAME = 0x40000000, 0x04000000  # CLONE_NEWNET, CLONE_NEWUTS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", nargs="*", choices=TRIALS, default=list(TRIALS))
    parser.add_argument("--seconds", type=float, default=40.0, help="how long a host stays cut off")
    given = parser.parse_args()
    if reason := why_not():
        sys.exit(f"partition: {reason}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the hosts are deleted then too
    torch.set_num_threads(1)
    chaos_faults.SAMPLES = SAMPLES
    chaos_faults.MAINS.update({name: importlib.import_module(f"jobs.{name}").main for name in chaos_faults.SCRIPTS})
    with tempfile.TemporaryDirectory() as folder:
        prepared, expected = chaos_faults.undisturbed(Path(folder))
        with hosts() as network, s3_server(Path(folder)):
            for number, name in enumerate(given.trials):
                run = Location(f"s3://{conftest.BUCKET}/run-{number}")
                for file in filter(Path.is_file, prepared.rglob("*")):
                    (run / str(file.relative_to(prepared))).write_bytes(file.read_bytes())
                started = time.monotonic()
                story = TRIALS[name](Trial(network, run.uri, given.seconds))
                story += f"; {compare(run, expected)}; {time.monotonic() - started:.0f} s"
                print(f"{name}: {story}", flush=True)
    print("partition: the bytes of an undisturbed run in every trial.", flush=True)


def why_not() -> str:
    """Why this machine cannot try it; "" if it can."""
    if sys.platform != "linux" or not shutil.which("ip"):
        return "needs Linux and the command `ip` (Debian's package iproute2)."
    if os.geteuid() != 0:
        return "needs root, to make network namespaces."
    probe = f"fknprobe{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return f"cannot make network namespaces here ({made.stderr.strip()})." if made.returncode else ""


class Network:
    """The hosts: network namespaces, by address. This process is on the store's host."""

    def __init__(self) -> None:
        self.names = {address: f"fkn{os.getpid()}-{number}" for number, address in enumerate((STORE, ONE, OTHER))}

    def enter(self, host: str) -> None:
        """Moves this process to another host, which also has its own host name."""
        with open(f"/run/netns/{self.names[host]}") as namespace:
            _enter(namespace.fileno())
        _check(_LIBC.unshare(_NEW_HOST_NAME))
        socket.sethostname(self.names[host])

    def cut(self, host: str) -> None:
        self._set(host, "down")

    def join(self, host: str) -> None:
        self._set(host, "up")

    def _set(self, host: str, state: str) -> None:
        subprocess.run(["ip", "link", "set", f"port{host.rsplit('.')[-1]}", state], check=True)


@contextmanager
def hosts() -> Iterator[Network]:
    """Makes the hosts, and moves this process to the store's; they are deleted at the end."""
    network = Network()

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True)

    store = network.names[STORE]
    with open("/proc/self/ns/net") as outside, ExitStack() as stack:
        for name in network.names.values():
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", store, "link", "add", "bridge", "type", "bridge")
        for host in (ONE, OTHER):
            port, name = f"port{host.rsplit('.')[-1]}", network.names[host]
            ip("-n", store, "link", "add", port, "type", "veth", "peer", "name", "wire", "netns", name)
            ip("-n", store, "link", "set", port, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{host}/24", "dev", "wire")
            ip("-n", name, "link", "set", "wire", "up")
        ip("-n", store, "address", "add", f"{STORE}/24", "dev", "bridge")
        ip("-n", store, "link", "set", "bridge", "up")
        with open(f"/run/netns/{store}") as inside:
            _enter(inside.fileno())
        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            del os.environ[name]  # it is outside
        stack.callback(_enter, outside.fileno())
        yield network


def _enter(namespace: int) -> None:
    _check(_LIBC.setns(namespace, _NEW_NETWORK))


def _check(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), "the kernel refuses a namespace")


@contextmanager
def s3_server(folder: Path) -> Iterator[None]:
    """SeaweedFS on the store's host; the environment of this process names it."""
    server = conftest.S3Server(f"http://{STORE}:8333")
    (folder / "identities.json").write_text(json.dumps(conftest._identities(server)))
    ports = [8333, 18333, 9333, 19333, 8080, 18080, 8888, 18888]
    command = [word.replace("127.0.0.1", STORE) for word in conftest._command(folder, ports)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    try:
        conftest._wait_until_ready(server, process, folder)
        os.environ.update(server.environment(server.owner) | {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"})
        yield
    finally:
        process.kill()
        process.wait()


class Trial:
    """One run, and what is needed to disturb it."""

    def __init__(self, network: Network, run: str, seconds: float) -> None:
        self.network, self.run, self.seconds = network, run, seconds

    def launch(self, host: str, samples: int, *flags: str) -> Launch:
        """A launch of the maps on a host."""
        move = partial(self.network.enter, host)
        return Launch("generate_maps", self.run, chaos_faults.samples(samples), *flags, before=move)

    def wait_for_units(self, launch: Launch, number: int = 1) -> int:
        """Until so many units are finished; how many are."""
        step, end = Step(Location(self.run) / "maps"), time.monotonic() + MOST_SECONDS
        while len(step.receipts()) < number and not launch.has_ended and time.monotonic() < end:
            time.sleep(0.1)
        return len(step.receipts())

    def cut(self, host: str) -> None:
        """Cuts a host off, and joins it again."""
        self.network.cut(host)
        time.sleep(self.seconds)
        self.network.join(host)

    def end(self, launch: Launch) -> str:
        """What became of a launch: its exit code and, unless it is 0, its last line, which is no traceback's."""
        code, text = launch.end()
        assert code >= 0 and "Traceback" not in text, f"{code}: {text[-3000:]}"
        said = [line for line in text.splitlines() if line.strip() and ": log: " not in line]
        last = said[-1] if said else ""
        return "0" if code == 0 else f"{code} ({last[-300:]})"

    def again(self, host: str, samples: int, *flags: str) -> str:
        """The same command again: it must finish the run."""
        found = self.end(self.launch(host, samples, *flags))
        assert found == "0", found
        return found


def driver(trial: Trial) -> str:
    """The host of a driver without Ray is cut off from the storage."""
    launch = trial.launch(ONE, SAMPLES[0])
    units = trial.wait_for_units(launch)
    trial.cut(ONE)
    return f"cut off after {units} units: {trial.end(launch)}; again: {trial.again(OTHER, SAMPLES[0])}"


def suspended(trial: Trial) -> str:
    """A driver's host is cut off and suspended for longer than a heartbeat counts: another host restarts, it wakes."""
    launch = trial.launch(ONE, SAMPLES[0])
    units = trial.wait_for_units(launch)
    launch.send(signal.SIGSTOP)
    trial.network.cut(ONE)
    early = trial.end(trial.launch(OTHER, SAMPLES[1], "--restart", "maps"))
    assert early != "0", "a restart was not refused, although the other driver was alive a moment ago"
    time.sleep(65)
    late = trial.again(OTHER, SAMPLES[1], "--restart", "maps")
    trial.network.join(ONE)
    launch.send(signal.SIGCONT)
    woken = trial.end(launch)
    assert woken != "0", "a driver that lost its right reported its work as done"
    return f"cut off after {units} units; restart at once: {early}; after 65 s: {late}; the first one, joined: {woken}"


def ray_driver(trial: Trial) -> str:
    return _on_ray(trial, ONE)


def ray_worker(trial: Trial) -> str:
    return _on_ray(trial, OTHER)


def _on_ray(trial: Trial, victim: str) -> str:
    """A cluster of two nodes, the driver on the head's; one node is cut off from the other and from the storage."""
    flags = ["--set", f"cluster.address={ONE}:6379", "--set", "cluster.max_actors=2"]
    with ray_node(trial, ONE, "--head", "--port=6379", "--include-dashboard=false"):
        with ray_node(trial, OTHER, f"--address={ONE}:6379"):
            launch = trial.launch(ONE, SAMPLES[0], *flags)
            units = trial.wait_for_units(launch)
            trial.cut(victim)
            found = trial.end(launch)
        return f"cut off after {units} units: {found}; again: {trial.again(ONE, SAMPLES[0], *flags)}"


@contextmanager
def ray_node(trial: Trial, host: str, *flags: str) -> Iterator[None]:
    """A node of Ray on a host, which may have ended by itself when the block ends."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--block", f"--node-ip-address={host}", "--num-cpus=2", *flags]
    command += [f"--node-manager-port={NODE_PORT}"]
    command = ["ip", "netns", "exec", trial.network.names[host], *command]
    output = tempfile.TemporaryFile()  # noqa: SIM115  read if the node does not start
    node = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + MOST_SECONDS
        while not _answers(host, NODE_PORT):
            if node.poll() is not None or time.monotonic() > end:
                output.seek(0)
                raise RuntimeError(f"Ray did not start on {host}: {output.read().decode(errors='replace')[-2000:]}")
            time.sleep(1)
        yield
    finally:
        node.terminate()
        node.wait(timeout=120)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def compare(run: Location, expected: dict) -> str:
    """Whether the run has all units, and the bytes of an undisturbed run with the settings of its record."""
    step = Step(run / "maps")
    number = json.loads((run / "maps/step.json").read_bytes())["fingerprint"]["maps"]["num_samples"]
    assert sorted(step.receipts()) == list(range(chaos_faults.NUM_UNITS))
    store, wanted = step.data() / "maps.zarr", expected[number][0]
    different = [name for name, data in wanted.items() if (store / name).read_bytes() != data]
    assert not different, f"other bytes in {different[:5]}"
    return f"{len(wanted)} objects of {number} samples are those of an undisturbed run"


TRIALS: dict[str, Callable[[Trial], str]] = {
    "driver": driver,
    "suspended": suspended,
    "ray_driver": ray_driver,
    "ray_worker": ray_worker,
}


if __name__ == "__main__":
    main()
