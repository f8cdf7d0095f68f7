"""Metrics while a job runs: on the nodes' Prometheus endpoint with Ray, and no trouble without."""

import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import pytest
import ray

from cluster.connect import Connection
from cluster.fanout import Payload, Pool, Stages, fan_out
from cluster.live_metrics import count_images, count_retry, observe_stage

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def published() -> dict[str, float]:
    """The project's metrics as Prometheus would read them, added over all processes and nodes: 'name step': value."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        with urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, tags, value in re.findall(r"^ray_(ficklenet_\w+)\{(.*?)\} (\S+)$", text, re.M):
            what = re.search(r'(?:step|stage)="(\w+)"', tags)
            if what and not name.endswith("_bucket"):
                found[f"{name} {what[1]}"] = found.get(f"{name} {what[1]}", 0) + float(value)
    return found


@pytest.mark.cluster  # Ray's workers publish every 10 s
def test_stages_retries_and_images_are_published(local_ray: Connection, tmp_path: Path) -> None:
    def die_once(mark: Path, payload: Payload) -> Payload:
        if payload["unit"] == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return payload

    stages = Stages(lambda: partial(die_once, tmp_path / "died"), dict, dict)
    before = published()
    for _ in fan_out([{"unit": number} for number in range(5)], stages, Pool(1, 1)):
        count_images("maps", done=3, skipped=1)
    expected = {
        "ficklenet_stage_seconds_count read": 5,
        "ficklenet_stage_seconds_count write": 5,
        "ficklenet_unit_retries_total compute": 1,
        "ficklenet_images_total maps": 15,
        "ficklenet_images_skipped_total maps": 5,
    }
    found: dict[str, float] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not found.items() >= expected.items():
        time.sleep(1)
        found = {name: value - before.get(name, 0) for name, value in published().items()}
    assert found.items() >= expected.items(), found


def test_without_a_ray_metrics_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr("cluster.live_metrics.Counter", lambda *_: pytest.fail("a counter was made"))
    monkeypatch.setattr("cluster.live_metrics.Histogram", lambda *_, **__: pytest.fail("a histogram was made"))
    count_images("seeds", done=3, skipped=1)
    count_retry("read")
    observe_stage("read", 0.1)
