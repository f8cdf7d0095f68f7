"""ray_cluster.yaml: what it promises, and its node types come and go as a fan-out needs them."""

import copy
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from cluster.check_cluster_file import problems_of
from jobs.run.config import resolve_config
from jobs.training.kept_features import LARGEST_SHARE

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())

SCRIPT = """
import sys, threading, time
sys.path.insert(0, {root!r})
import ray
from cluster.connect import connect
from cluster.fanout import Pool, Stages, fan_out

def same(payload):
    time.sleep(0.5)
    return payload

def computed(payload):
    give_up = time.monotonic() + 5  # a busy machine takes its time to start a second node
    while sum(node["Alive"] for node in ray.nodes()) < 3 and time.monotonic() < give_up:
        time.sleep(0.2)
    return same(payload)

def main():
    seen, ended = [], threading.Event()
    def watch():
        while not ended.wait(0.2):
            types = [node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]]
            seen.append((len(types) - 1, sum(map(bool, types))))
    with connect({address!r}) as connection:
        assert connection.num_nodes == 1, "a node before there was work"
        watcher = threading.Thread(target=watch)
        watcher.start()
        pool = Pool(1, 2, gpus_per_actor=1, autoscaling=True)
        receipts = list(fan_out([{{"unit": n}} for n in range(24)], Stages(lambda: computed, same, same), pool))
        deadline = time.monotonic() + 240
        while seen[-1][0] and time.monotonic() < deadline:
            time.sleep(0.5)
        ended.set()
        watcher.join()
    print("receipts", len(receipts), "most nodes", max(seen)[0], "most gpu nodes", max(n for _, n in seen),
          "at the end", seen[-1][0])

if __name__ == "__main__":
    main()
"""


def test_the_documented_second_gpu_type_differs_in_its_machine_alone() -> None:
    (block,) = re.findall(r"```yaml\n(.+?)```", (ROOT / "docs/tutorial-aws.md").read_text(), re.DOTALL)
    (changes,) = yaml.safe_load(block)["available_node_types"].values()
    gpu = CONFIG["available_node_types"]["gpu_worker"]
    whole = changes | {"node_config": gpu["node_config"] | changes["node_config"]}
    assert whole == gpu | {"node_config": gpu["node_config"] | {"InstanceType": "g4dn.xlarge"}}
    types = CONFIG["available_node_types"] | {"gpu_worker_t4": whole}
    problems = problems_of(yaml.safe_dump(CONFIG | {"available_node_types": types}))
    assert problems and all("replace <" in problem for problem in problems)


def test_the_documented_policies_are_json() -> None:
    blocks = re.findall(r"```json\n(.+?)```", (ROOT / "docs/tutorial-aws.md").read_text(), re.DOTALL)
    job, head, statement = map(json.loads, blocks)
    assert {each["Effect"] for each in [*job["Statement"], *head["Statement"], statement]} == {"Allow"}


def test_the_head_computes_nothing_and_workers_begin_at_none() -> None:
    types = CONFIG["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0" in " ".join(CONFIG["head_start_ray_commands"])
    assert all(types[name]["min_workers"] == 0 for name in ("cpu_worker", "gpu_worker"))
    assert types["gpu_worker"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_a_workers_disk_has_room_for_the_features_that_a_training_keeps() -> None:
    """40 GB of 80 % of what the system and the container, about 30 GB, leave; the file gives this rule."""
    config = resolve_config({}, None, [])
    wanted = max(config.classifier.kept_features_gb, config.segmenter.kept_features_gb) / LARGEST_SHARE + 30
    for name in ("cpu_worker", "gpu_worker"):
        (disk,) = CONFIG["available_node_types"][name]["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] >= wanted


def test_the_cluster_asks_for_a_token_and_hides_its_dashboard() -> None:
    assert "--env RAY_AUTH_MODE=token" in CONFIG["docker"]["run_options"]
    assert any("auth_token" in place for place in CONFIG["file_mounts"])
    commands = " ".join(CONFIG["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands


def test_every_key_says_when_to_change_it() -> None:
    lines = (ROOT / "ray_cluster.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        is_key = line and line[0].isalpha() and ":" in line
        follows_comment = lines[number - 1].startswith("#")
        explains_below = number + 1 < len(lines) and lines[number + 1].lstrip().startswith("#")
        assert not is_key or follows_comment or explains_below or line.startswith(("head_setup", "worker_")), line


def test_the_container_is_the_one_the_cluster_runs() -> None:
    containerfile, version = (ROOT / "Containerfile").read_text(), CONFIG["docker"]["image"].rsplit(":", 1)[1]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"ficklenet:{version} " in containerfile
    assert "--constraint constraints.txt" in containerfile
    assert next(line for line in containerfile.splitlines() if line.startswith("FROM")).count(".") >= 3  # 3.11.x


def fake_config(port: int) -> dict[str, Any]:
    """The file's worker types as processes of this machine, ended after a few idle seconds."""
    types = copy.deepcopy(CONFIG["available_node_types"])
    workers = {
        name: {key: types[name][key] for key in ("resources", "min_workers", "max_workers")} | {"node_config": {}}
        for name in ("cpu_worker", "gpu_worker")
    }
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    return {
        "cluster_name": "fake",
        "max_workers": CONFIG["max_workers"],
        "upscaling_speed": CONFIG["upscaling_speed"],
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",  # "fake_multinode" by its class: the wheel lacks that type's example file
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": workers | {"ray.head.default": head},
        "head_node_type": "ray.head.default",
        "auth": {"ssh_user": "ray"},
        "docker": {},
        "initialization_commands": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_nodes_come_for_a_fan_out_and_go_after_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config, folder = tmp_path / "fake.json", tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a short path, for sockets
    config.write_text(json.dumps(fake_config(port)))
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex)
    environment = os.environ | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    }
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    command += [f"--autoscaling-config={config}", "--include-dashboard=false", "--num-gpus=0"]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        assert head.stdout is not None
        assert any("--block" in line for line in head.stdout)  # it is up
        script = tmp_path / "job.py"
        script.write_text(SCRIPT.format(root=str(ROOT), address=f"127.0.0.1:{port}"))
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=540
        )
        assert done.returncode == 0, done.stderr
        assert "receipts 24" in done.stdout
        words = done.stdout.split()
        assert int(words[4]) >= 2 and int(words[8]) >= 1 and words[-1] == "0", done.stdout
        print(f"{time.monotonic() - begin:.0f} s: {done.stdout}")  # noqa: T201
    finally:
        head.terminate()
        head.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)
