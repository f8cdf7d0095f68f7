"""Cells learned from the maps of all training images, and the refined maps that the network of cells makes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.connect import connect
from ficklenet.cell_classifier import cell_features, cell_probabilities, unpack_cells
from ficklenet.resampling import resize_square
from ficklenet.transforms import normalize
from jobs import prepare_dataset
from jobs.cli.launch import launch_step
from jobs.cli.pipeline import require_current, require_startable
from jobs.maps import unit_images
from jobs.maps.cells_job import _present
from jobs.notebook.trained_run import open_trained
from jobs.reporting.changes import find_changes
from jobs.run.directory import CELL_NETWORK, CELL_RECORD, Run, open_run, setting_notes
from jobs.run.fingerprints import is_outdated, outdated_steps
from jobs.run.steps import pipeline_steps
from jobs.steps.networks import load_classifier
from storage.errors import NotYet
from storage.images import read_image
from storage.manifest import Manifest
from storage.units import plan_units

QUICK = ("cells.cells_per_image=40", "cells.epochs=2")


def launch(run: Run, *names: str, settings: tuple[str, ...] = (), **options) -> Run:
    changed = open_run(run.uri, None, [*QUICK, *settings])
    with connect("in-process") as connection:
        for name in names:
            launch_step(changed, connection, name, **options)
    return changed


@pytest.fixture(scope="module")
def refined_folder(mapped_run_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("refined") / "run"
    shutil.copytree(mapped_run_folder, folder)
    launch(open_run(str(folder)), "cells", "refined")
    return folder


@pytest.fixture
def refined_run(refined_folder, tmp_path) -> Run:
    shutil.copytree(refined_folder, tmp_path / "refined_run")
    return open_run(str(tmp_path / "refined_run"))


def stored(run: Run) -> dict[str, bytes]:
    """Everything below the arrays of the two steps, and the network."""
    steps = [Path(run.uri) / name for name in ("cells", "refined")]
    files = [file for step in steps for file in step.rglob("*") if ".zarr/" in str(file) or file.name == CELL_NETWORK]
    return {str(file.relative_to(run.uri)): file.read_bytes() for file in files if file.is_file()}


def test_refined_maps_are_probabilities_among_an_images_own_classes(refined_run):
    refined, maps = refined_run.maps(step="refined"), refined_run.maps()
    assert refined.grid == maps.grid and refined.attributes["class_names"] == maps.attributes["class_names"]
    found = [refined.read(index) for index in range(14)]
    for index, image in enumerate(found):
        np.testing.assert_array_equal(image.classes, maps.read(index).classes)
        np.testing.assert_array_equal(image.score, maps.read(index).score)
        assert (image.max >= 0).all() and (image.max.astype(float).sum(axis=0) <= 1.002).all()
        np.testing.assert_array_equal(image.mean, image.max)
    assert np.concatenate([image.max.ravel() for image in found]).std() > 0.01


def test_without_walk_and_crf_they_are_what_the_network_says_of_each_cell(refined_run):
    run = launch(refined_run, "refined", settings=("refined.walk_steps=0", "refined.refine=false"), restart=True)
    network = unpack_cells((run.data("cells") / CELL_NETWORK).read_bytes())
    image = run.maps(step="refined").read(3)
    pixels = resize_square(read_image(run.manifest().rows(3, 4)[0].uri), run.config.images.input_size)
    with torch.no_grad():
        stages = load_classifier(run).backbone.last_stages(normalize(torch.from_numpy(pixels)[None]))
    expected = cell_probabilities(network, cell_features([stage[0] for stage in stages]), image.classes)
    np.testing.assert_allclose(image.max, expected[1:], atol=2e-3)


def test_relaunch_computes_the_missing_unit_again_with_the_same_bytes(refined_run, capsys):
    before = stored(refined_run)
    assert len(before) > 10
    for name in ("cells", "refined"):
        (Path(refined_run.uri) / name / "done" / "000002.json").unlink()
    (Path(refined_run.uri) / "cells" / CELL_RECORD).unlink()
    launch(refined_run, "cells", "refined")
    assert capsys.readouterr().out.count("1 of 4 units to do (4 of 14 images)") == 2
    assert stored(refined_run) == before


def test_shards_give_the_same_network_learned_by_the_last_of_them(refined_run, capsys):
    before = stored(refined_run)
    launch(refined_run, "cells", restart=True)
    run = launch(refined_run, "cells", restart=True)
    shutil.rmtree(Path(run.uri) / "cells")
    launch(run, "cells", shard=(1, 2))
    assert not (run.data("cells") / CELL_NETWORK).exists() and "the last shard" in capsys.readouterr().out
    launch(run, "cells", shard=(2, 2))
    assert {name: data for name, data in stored(run).items() if name in before} == before


def test_only_training_images_are_learned_and_at_most_so_many(refined_run, monkeypatch):
    def images_with_cells(run: Run) -> set[int]:
        units = plan_units(14, run.config.unit_size)
        labels = np.concatenate([run.cells().read_unit(unit)[1] for unit in units])
        return set(np.flatnonzero((labels != 255).any(axis=1)))

    assert images_with_cells(refined_run) <= set(range(12))  # the last two are the validation split
    assert len(images_with_cells(refined_run)) > 8
    read = []
    monkeypatch.setattr(unit_images, "read_image", lambda uri, **limits: read.append(uri) or read_image(uri, **limits))
    fewer = launch(refined_run, "cells", settings=("cells.max_images=4",), restart=True)
    assert 0 < len(images_with_cells(fewer)) < 9
    uris = {row.uri for index, row in enumerate(fewer.manifest().iter_rows()) if index in images_with_cells(fewer)}
    assert uris <= set(read) and len(read) < 9  # other images are not decoded


def test_cells_are_stored_under_the_labels_of_the_maps(refined_run):
    unit = plan_units(14, 4)[0]
    features, labels, classes = refined_run.cells().read_unit(unit)
    maps = refined_run.maps().read_unit(unit)
    np.testing.assert_array_equal(classes, maps.classes)
    for number in range(4):
        peak = np.nan_to_num(maps.max[number].astype(np.float32)).max(axis=0)
        known = labels[number][labels[number] != 255]
        assert set(known) <= {0, *(classes[number][classes[number] >= 0] + 1)}
        assert (known == 0).sum() == min(20, (peak < 0.3).sum()) and (known > 0).sum() == min(20, (peak > 0.3).sum())
        assert features[number][labels[number] != 255].any(axis=1).all()
        assert not features[number][labels[number] == 255].any()


def test_seeds_and_pseudo_labels_are_made_of_the_refined_maps_where_so_configured(refined_run):
    plain = launch(refined_run, "seeds").seeds().read(3)
    with pytest.raises(ValueError, match=r"seeds.maps: maps -> refined"):
        launch(refined_run, "seeds", settings=("seeds.maps=refined",))
    run = launch(refined_run, "seeds", settings=("seeds.maps=refined",), restart=True)
    assert (run.seeds().read(3) != plain).any()
    largest = run.maps(step="refined").read(3).max.astype(np.float32).max(axis=0)
    np.testing.assert_array_equal(run.seeds().read(3) == 0, largest < 0.2)
    launch(run, "pseudo_labels", settings=("seeds.maps=refined", "pseudo_labels.refine=false"))
    assert run.step("pseudo_labels").fingerprint()["upstream"].keys() == {"refined"}


@pytest.mark.parametrize("setting", ["seeds.maps=refined", "seeds.background_cue=evidence"])
def test_pseudo_labels_are_outdated_when_the_seeds_are_started_again_with_a_setting_of_both(refined_run, setting):
    quick = "pseudo_labels.refine=false"
    launch(refined_run, "seeds", "pseudo_labels", settings=(quick,))
    assert outdated_steps(open_run(refined_run.uri)) == set()
    launch(refined_run, "seeds", settings=(setting,), restart=True)
    run = open_run(refined_run.uri)
    assert outdated_steps(run) == {"pseudo_labels"} and is_outdated(run, "pseudo_labels")
    with pytest.raises(ValueError, match=r"outdated.*pseudo-labels.*--redo-outdated"):
        require_current(run)
    with pytest.warns(UserWarning, match=r"pseudo-labels of .* is outdated.*make_pseudo_labels\.py .*--restart"):
        open_trained(run.uri).stored_labels("scene_0003", "pseudo_labels")
    changes = find_changes([run, run], "pseudo_labels", most_compared=1, most_shown=1)
    assert all("is outdated" in sentence for sentence in changes.outdated) and len(changes.outdated) == 2


def test_redone_pseudo_labels_are_not_outdated_any_more(refined_run):
    settings = ("seeds.maps=refined", "pseudo_labels.refine=false")
    launch(refined_run, "seeds", "pseudo_labels", settings=settings[1:])
    launch(refined_run, "seeds", settings=settings, restart=True)
    launch(refined_run, "pseudo_labels", settings=settings, restart=True)
    assert not is_outdated(open_run(refined_run.uri), "pseudo_labels")


def test_other_maps_of_the_seeds_are_advised_with_the_steps_that_they_need_first(seeded_run):
    run = open_run(seeded_run.uri, None, ["seeds.maps=refined"])
    with pytest.raises(
        ValueError, match=r"'python jobs/learn_cells.* && .*refine_maps.* && .*aggregate_seeds.*restart"
    ):
        require_startable(run, redo_outdated=False)
    (note,) = setting_notes(run, ["cells"])
    assert note.startswith("seeds.maps: the run keeps maps")
    command = "python jobs/{}.py --run " + f"{run.uri} --set seeds.maps=refined"
    first, second = command.format("refine_maps"), command.format("aggregate_seeds")
    assert note.endswith(f"To change it to refined after this step: '{first} && {second} --restart seeds'.")


def test_a_setting_that_changes_the_labels_of_the_cells_is_refused(refined_run):
    with pytest.raises(ValueError, match=r"seeds.priority: background -> foreground.*--restart cells"):
        launch(refined_run, "cells", settings=("seeds.priority=foreground",))
    launch(refined_run, "cells", settings=("seeds.theta=0.5",))  # the seeds' own threshold is none of theirs


def test_refining_before_the_cells_are_learned_is_refused_with_the_command(refined_run):
    (Path(refined_run.uri) / "cells" / CELL_RECORD).unlink()
    with pytest.raises(NotYet, match=r"not trained yet. Run 'python jobs/learn_cells.py .*' first"):
        launch(refined_run, "refined")


def test_maps_that_label_no_cell_are_refused_with_the_keys_to_change(refined_run):
    with pytest.raises(ValueError, match=r"all cells are background.*cells.theta and cells.evidence_threshold"):
        launch(refined_run, "cells", settings=("cells.theta=1", "cells.evidence_threshold=1"), restart=True)


def test_the_pipeline_refines_only_where_the_seeds_are_made_of_refined_maps(refined_run):
    def names(*settings: str) -> list[str]:
        return [row.name for row in pipeline_steps(open_run(refined_run.uri, None, settings).config)]

    assert names()[:3] == ["classifier", "maps", "seeds"]
    assert names("seeds.maps=refined")[:5] == ["classifier", "maps", "cells", "refined", "seeds"]


def test_cells_of_an_image_without_classes_are_told_apart_from_every_class():
    assert _present(np.array([1, -1]), 3).tolist() == [True, False, True, False]
    assert _present(np.array([-1, -1]), 3).all()


def test_a_network_of_cells_that_has_changed_is_refused(refined_run):
    place = Path(refined_run.uri) / "cells" / CELL_NETWORK
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 1
    place.write_bytes(data)
    with pytest.raises(ValueError, match=r"network\.pt: its bytes have changed .* --restart cells"):
        launch(refined_run, "refined", restart=True)


def test_a_second_launch_keeps_the_network_that_refined_maps_were_made_with(refined_run, capsys):
    before = stored(refined_run)
    launch(refined_run, "cells")
    assert "already learned" in capsys.readouterr().out and stored(refined_run) == before


def test_added_images_alone_are_refined_with_the_network_that_was_learned_before(
    refined_run, drawn_images, monkeypatch
):
    before, table = stored(refined_run), Path(refined_run.uri).parent / "added.csv"
    new = [str(shutil.copy(drawn_images[number].uri, table.with_name(f"october_{number}.jpg"))) for number in range(5)]
    table.write_text(
        "image,labels,split\n"
        + "".join(f"{new[number]},{';'.join(drawn_images[number].labels)},train\n" for number in range(5))
    )
    prepare_dataset.main(["--run", refined_run.uri, "--csv", str(table), "--add"])
    Manifest.forget()
    opened = set()

    def read(uri: str, **limits: int) -> np.ndarray:
        opened.add(uri)
        return read_image(uri, **limits)

    launch(refined_run, "maps")
    monkeypatch.setattr(unit_images, "read_image", read)
    launch(refined_run, "cells", "refined", "seeds", settings=("seeds.maps=refined",))
    assert opened == {*new}
    after = stored(refined_run)
    full = [name for name in before if "/c/" in name and not name.split("/c/")[1].startswith("3/")]  # units of 4 of 14
    assert full and all(after[name] == before[name] for name in (*full, *(n for n in before if CELL_NETWORK in n)))
    found = refined_values(refined_run)
    launch(refined_run, "refined", restart=True)
    np.testing.assert_array_equal(found, refined_values(refined_run))


def refined_values(run: Run) -> np.ndarray:
    """Of all classes of all images."""
    store = open_run(run.uri).maps(step="refined")
    return np.concatenate([store.read(number).max.ravel() for number in range(run.manifest().num_images)])
