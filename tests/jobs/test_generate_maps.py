"""The main job on a tiny run: what is stored, resume, refusals, bad images."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from cluster.connect import connect
from ficklenet.classifier import pack_classifier
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.localizer import Normalization, localize
from ficklenet.masks import mask_key
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs.cli.launch import launch_step
from jobs.preparation.prepare import prepare
from jobs.run.directory import Run, open_run
from jobs.run.training_record import read_complete
from jobs.steps.networks import load_classifier
from storage.images import read_image
from storage.steps import Step

REPOSITORY = Path(__file__).parents[2]


def make_maps(run: Run, *assignments: str, **options) -> None:
    """generate_maps in this process, with a changed configuration."""
    changed = open_run(run.uri, None, assignments)
    with connect("in-process") as connection:
        launch_step(changed, connection, "maps", **options)


def stored_bytes(run: Run) -> dict[str, bytes]:
    root = Path(run.data("maps").uri) / "maps.zarr"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def finishing_times(run: Run) -> dict[int, float]:
    return {unit: receipt.finished for unit, receipt in Step(run.location / "maps").receipts().items()}


@pytest.fixture
def mapped_run(finished_maps_run) -> Run:
    return finished_maps_run


def test_every_image_has_the_maps_of_its_labels(mapped_run, capsys):
    manifest, store = mapped_run.manifest(), mapped_run.maps()
    for index, row in enumerate(manifest.iter_rows()):
        maps = store.read(index)
        assert tuple(maps.classes) == row.labels
        assert maps.max.shape == (len(row.labels), 9, 9)
        assert (maps.mean <= maps.max).all()
        assert np.isfinite(maps.score).all()


def test_stored_maps_are_the_localizers(mapped_run):
    row = mapped_run.manifest().rows(5, 6)[0]
    classifier = load_classifier(mapped_run)
    inputs = normalize(torch.from_numpy(resize_square(read_image(row.uri), 65))[None])
    with torch.no_grad():
        expected = localize(
            classifier.backbone(inputs),
            classifier.head,
            torch.tensor([row.labels]),
            [mask_key(0, row.image_id)],
            num_samples=8,
            drop_rate=0.9,
            normalization=Normalization("percentile", 90.0),
        )
    stored = mapped_run.maps().read(5)
    np.testing.assert_allclose(stored.max, expected.max_BSHW[0].numpy(), atol=1e-3)
    np.testing.assert_allclose(stored.score, expected.score_BS[0].numpy(), rtol=1e-4)


def test_store_opens_in_xarray_with_its_dimensions(mapped_run):
    dataset = xarray.open_zarr(f"{mapped_run.uri}/maps/maps.zarr", consolidated=False)
    assert dataset["max"].dims == ("image", "slot", "y", "x")
    assert dataset["score"].dims == ("image", "slot")
    assert dataset.attrs["class_names"] == list(DRAWN_CLASS_NAMES)


def test_relaunch_runs_only_the_missing_units(mapped_run, capsys):
    before, bytes_before = finishing_times(mapped_run), stored_bytes(mapped_run)
    done = Path(mapped_run.uri) / "maps" / "done"
    (done / "000001.json").unlink()
    (done / "000003.json").write_text("{torn")
    make_maps(mapped_run)
    after = finishing_times(mapped_run)
    assert {unit for unit in after if after[unit] != before[unit]} == {1, 3}
    assert stored_bytes(mapped_run) == bytes_before
    assert "2 of 4 units to do (6 of 14 images)" in capsys.readouterr().out


def test_finished_job_computes_nothing(mapped_run, capsys):
    before = finishing_times(mapped_run)
    make_maps(mapped_run)
    assert finishing_times(mapped_run) == before
    assert "14 images done, 0 skipped, 0 left" in capsys.readouterr().out


def test_shards_in_another_order_store_the_same_bytes(mapped_run):
    whole = stored_bytes(mapped_run)
    make_maps(mapped_run, restart=True, shard=(2, 2))
    assert sorted(finishing_times(mapped_run)) == [1, 3]
    make_maps(mapped_run, shard=(1, 2))
    assert stored_bytes(mapped_run) == whole


def test_relaunch_with_another_config_is_refused(mapped_run):
    with pytest.raises(ValueError, match=r"maps.num_samples: 8 -> 9\).*--restart maps"):
        make_maps(mapped_run, "maps.num_samples=9")
    assert open_run(mapped_run.uri).config.maps.num_samples == 8  # the refused value is not recorded


def test_relaunch_with_another_checkpoint_is_refused(mapped_run):
    folder = Path(mapped_run.uri) / "classifier"
    classifier = load_classifier(mapped_run)
    with torch.no_grad():
        classifier.head.bias += 1
    (folder / "model.pt").write_bytes(pack_classifier(classifier))
    with pytest.raises(ValueError, match="not the file that the training wrote"):
        make_maps(mapped_run)
    record = dict(read_complete(mapped_run.data("classifier")) or {})
    record["sha256"] = hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest()
    (folder / "complete.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"its classifier changed since.*--restart maps.*another run"):
        make_maps(mapped_run)


def test_restart_begins_anew(mapped_run):
    make_maps(mapped_run, "maps.num_samples=9", restart=True)
    assert len(finishing_times(mapped_run)) == 4
    assert open_run(mapped_run.uri).config.maps.num_samples == 9


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_with_the_setting_for_the_cpu(trained_run):
    with pytest.raises(ValueError, match=r"maps\.device: .* no GPU .* --set maps\.device=cpu\.$"):
        make_maps(trained_run, "maps.device=cuda")


def test_maps_without_classifier_name_the_command_that_makes_it(trained_run):
    (Path(trained_run.uri) / "classifier" / "complete.json").unlink()
    with pytest.raises(ValueError, match=r"no trained classifier\. Run 'python jobs/train_ficklenet.py"):
        make_maps(trained_run)


def write_bad_images(folder: Path, good: bytes) -> dict[str, str]:
    """Bad files by id, with the start of the reason each must be skipped for."""
    header = b"IHDR" + (30_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    header = b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + zlib.crc32(header).to_bytes(4, "big")
    (folder / "zero.png").write_bytes(b"")
    (folder / "truncated.png").write_bytes(good[: len(good) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "huge.png").write_bytes(header + good[33:])
    return {
        "zero.png": "empty file",
        "truncated.png": "damaged or truncated PNG file",
        "text.jpg": "not an image",
        "huge.png": "too large",
        "absent.png": "no such file",
    }


def test_bad_images_are_skipped_with_a_reason_and_harm_no_other(mapped_run, drawn_images, tmp_path, capsys):
    folder = tmp_path / "bad"
    folder.mkdir()
    reasons = write_bad_images(folder, Path(drawn_images[0].uri).read_bytes())
    bad = [replace(drawn_images[0], image_id=name, uri=str(folder / name)) for name in reasons]
    bad.append(replace(drawn_images[0], image_id="foreign", labels=("zebra",)))
    reasons["foreign"] = "label 'zebra' is not in the class list"

    other = open_run(
        str(tmp_path / "other"), None, ["images.max_skipped_fraction=0.6"], defaults=mapped_run.config.model_dump()
    )
    prepare(other, [image for pair in zip(drawn_images, bad, strict=False) for image in pair], DRAWN_CLASS_NAMES)
    (tmp_path / "other" / "classifier").symlink_to(Path(mapped_run.uri) / "classifier")
    make_maps(other)

    receipts = Step(other.location / "maps").receipts().values()
    skipped = {skip.image_id: skip.reason for receipt in receipts for skip in receipt.skipped}
    assert skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in skipped[name], name
    assert "6 images done, 6 skipped" in capsys.readouterr().out
    # a good image's maps do not depend on its neighbours
    good, reference = (run.maps() for run in (other, mapped_run))
    for position in range(6):
        np.testing.assert_array_equal(good.read(2 * position).max, reference.read(position).max)


def test_too_many_bad_images_stop_the_job_and_keep_what_is_done(trained_run, drawn_images, tmp_path):
    images = [drawn_images[0], *[replace(image, uri=image.uri + ".gone") for image in drawn_images[1:]]]
    run = open_run(str(tmp_path / "other"), defaults=trained_run.config.model_dump())
    prepare(run, images, DRAWN_CLASS_NAMES)
    (tmp_path / "other" / "classifier").symlink_to(Path(trained_run.uri) / "classifier")
    with pytest.raises(ValueError, match=r"of 14 images had to be skipped .*max_skipped_fraction = 0.5"):
        make_maps(run)
    assert 0 in finishing_times(run)


def test_unlabelled_images_get_the_predicted_classes(trained_run, drawn_images, tmp_path):
    run = open_run(
        str(tmp_path / "other"),
        None,
        ["maps.classes=predicted", "maps.max_classes=2", "maps.predicted_threshold=0.0"],
        defaults=trained_run.config.model_dump(),
    )
    prepare(run, [drawn_images[0], replace(drawn_images[1], labels=())], DRAWN_CLASS_NAMES)
    (tmp_path / "other" / "classifier").symlink_to(Path(trained_run.uri) / "classifier")
    make_maps(run)
    store = run.maps()
    assert tuple(store.read(0).classes) == run.manifest().rows(0, 1)[0].labels
    assert len(store.read(1).classes) == 2


KILLED_BEFORE_ITS_THIRD_RECEIPT = """
import os, signal, sys
from jobs import generate_maps
from storage.steps import Step

write_receipt, written = Step.write_receipt, []

def write_or_die(step, receipt):
    if len(written) == 2:  # the unit's data are stored
        os.kill(os.getpid(), signal.SIGKILL)
    write_receipt(step, receipt)
    written.append(receipt)

Step.write_receipt = write_or_die
generate_maps.main(sys.argv[1:])
"""


def test_killed_and_relaunched_run_stores_the_same_bytes(mapped_run, capfd):
    expected = stored_bytes(mapped_run)
    words = ["--run", mapped_run.uri, "--restart", "maps"]
    job = subprocess.run([sys.executable, "-c", KILLED_BEFORE_ITS_THIRD_RECEIPT, *words], cwd=REPOSITORY, check=False)
    assert job.returncode == -signal.SIGKILL
    assert len(finishing_times(mapped_run)) == 2
    _require_the_same_after_a_relaunch(mapped_run, expected, partial(make_maps, mapped_run), capfd)


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_a_run_killed_on_its_own_ray_stores_the_same_bytes(mapped_run, capfd):
    expected = stored_bytes(mapped_run)
    command = [sys.executable, "jobs/generate_maps.py", "--run", mapped_run.uri, "--set", "cluster.address=local"]
    restart = subprocess.Popen([*command, "--restart", "maps"], cwd=REPOSITORY, start_new_session=True)
    before = finishing_times(mapped_run)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and restart.poll() is None:
        now = finishing_times(mapped_run)
        if 1 <= len(now) < 4 and not now.items() & before.items():  # of the new start
            break
        time.sleep(0.02)
    os.kill(restart.pid, signal.SIGKILL)
    restart.wait()
    time.sleep(2)  # an own Ray ends with its driver
    relaunch = partial(subprocess.run, command, cwd=REPOSITORY, check=True)
    _require_the_same_after_a_relaunch(mapped_run, expected, relaunch, capfd)


def _require_the_same_after_a_relaunch(run: Run, expected: dict[str, bytes], relaunch, capfd) -> None:
    """The relaunch makes the missing units and no others, and the run's bytes are the expected ones."""
    fewer = finishing_times(run)
    assert fewer
    capfd.readouterr()
    relaunch()
    assert f"{4 - len(fewer)} of 4 units to do" in capfd.readouterr().out
    after = finishing_times(run)
    assert fewer.items() <= after.items()  # what was finished was not computed again
    assert stored_bytes(run) == expected


def test_input_size_of_the_classifier_is_not_changed_by_maps(mapped_run):
    before = finishing_times(mapped_run)
    with pytest.raises(ValueError, match=r"images\.input_size: given 129, allowed: 65"):
        make_maps(mapped_run, "images.input_size=129", restart=True)
    assert finishing_times(mapped_run) == before  # refused before anything was deleted
    assert open_run(mapped_run.uri).config.images.input_size == 65


def test_settings_of_a_started_step_are_not_recorded_by_another(mapped_run):
    make_maps(mapped_run, "classifier.epochs=9")
    assert open_run(mapped_run.uri).config.classifier.epochs == 1


def test_refusal_repeats_what_was_asked(mapped_run):
    with pytest.raises(ValueError, match=r"--set maps\.num_samples=9 --restart maps"):
        make_maps(mapped_run, "maps.num_samples=9")


def test_maps_of_a_cpu_are_kept_on_a_machine_with_a_gpu_if_the_device_is_given(finished_maps_run):
    with connect("in-process") as connection:
        with_gpu = replace(connection, num_gpus=1)
        with pytest.raises(
            ValueError, match=r"batch_size: 1 -> 32, device: cpu -> cuda, precision: float32 -> bfloat16"
        ):
            launch_step(open_run(finished_maps_run.uri), with_gpu, "maps")
        launch_step(open_run(finished_maps_run.uri, None, ["maps.device=cpu"]), with_gpu, "maps")
