"""A real image that ends the process reading it costs its own maps and no other's."""

import os
import signal
import sys

import numpy as np
import pytest
from ray import cloudpickle

from cluster.fanout import Payload
from cluster.quarantine import REASON
from jobs.cli.launch import launch_step
from jobs.maps import maps_job
from jobs.maps.map_stages import MapStages
from jobs.run.directory import open_run
from jobs.steps.unit_rows import known_problems
from storage.steps import Step

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

KILLER = "scene_0005"


class KillingStages(MapStages):
    """Reads as ever, with a decoder that one image is fatal to."""

    def read(self, row: Payload) -> Payload:
        unit = row["unit"]
        entries = self.run.manifest().rows(unit.start, unit.stop)
        problems = known_problems(row, entries)
        if any(entry.image_id == KILLER and number not in problems for number, entry in enumerate(entries)):
            os.kill(os.getpid(), signal.SIGKILL)
        return MapStages.read(self, row)


@pytest.mark.cluster
@pytest.mark.timeout(400)
def test_an_image_that_kills_its_process_is_skipped_and_harms_no_other(
    finished_maps_run, local_ray, monkeypatch, capsys
):
    monkeypatch.setattr(maps_job, "MapStages", KillingStages)
    run = open_run(finished_maps_run.uri, None, ["cluster.address=", "cluster.max_actors=1"])
    good = [finished_maps_run.maps().read(index).max for index in range(14)]
    launch_step(run, local_ray, "maps", restart=True)

    [receipt] = [each for each in Step(run.location / "maps").receipts().values() if each.skipped]
    assert [(skip.image_id, skip.reason) for skip in receipt.skipped] == [(KILLER, REASON)]
    assert "13 images done, 1 skipped" in capsys.readouterr().out
    for index in set(range(14)) - {5}:
        np.testing.assert_array_equal(run.maps().read(index).max, good[index])
    assert len(run.maps().read(5).classes) == 0
