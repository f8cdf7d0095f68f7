"""A real image that ends the process reading it costs its own maps and no other's."""

import os
import signal
import sys

import numpy as np
import pytest
from ray import cloudpickle

from cluster.fanout import Payload
from cluster.quarantine import REASON
from jobs import generate_maps
from jobs.map_stages import MapsJob
from jobs.run import open_run
from jobs.unit_steps import known_problems, unit_of
from storage.map_store import MapStore
from storage.steps import Step

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module

KILLER = "scene_0005"


class KillingJob(MapsJob):
    """Reads as ever, with a decoder that one image is fatal to."""

    def read(self, row: Payload) -> Payload:
        unit = unit_of(row)
        entries = self.run.manifest().rows(unit.start, unit.stop)
        problems = known_problems(row, entries)
        if any(entry.image_id == KILLER and number not in problems for number, entry in enumerate(entries)):
            os.kill(os.getpid(), signal.SIGKILL)
        return MapsJob.read(self, row)


@pytest.mark.timeout(400)
def test_an_image_that_kills_its_process_is_skipped_and_harms_no_other(
    finished_maps_run, local_ray, monkeypatch, capsys
):
    monkeypatch.setattr(generate_maps, "MapsJob", KillingJob)
    run = open_run(finished_maps_run.uri, None, ["cluster.address=", "cluster.max_actors=1"])
    store = finished_maps_run.location / "maps/maps.zarr"
    good = [MapStore.open(store).read(index).max for index in range(14)]
    generate_maps.generate(run, local_ray, restart=True)

    [receipt] = [each for each in Step(run.location / "maps").receipts().values() if each.skipped]
    assert [(skip.image_id, skip.reason) for skip in receipt.skipped] == [(KILLER, REASON)]
    assert "13 images done, 1 skipped" in capsys.readouterr().out
    for index in set(range(14)) - {5}:
        np.testing.assert_array_equal(MapStore.open(store).read(index).max, good[index])
    assert len(MapStore.open(store).read(5).classes) == 0
