"""A trained run in Python: equal to what the jobs store, pixel for pixel; the lines of the documentation run."""

import json
import math
import re
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import xarray
from PIL import Image

from cluster.connect import connect
from ficklenet.classifier import FickleNet
from ficklenet.drawing import DRAWN_CLASS_NAMES
from ficklenet.geometry import GridGeometry
from jobs import evaluate, prepare_dataset, status
from jobs.cli.launch import launch_step
from jobs.notebook import trained_run
from jobs.notebook.acting_settings import ACTING
from jobs.notebook.trained_run import open_trained
from jobs.preparation.prepare import prepare
from jobs.run.config_keys import config_keys
from jobs.run.directory import open_run
from jobs.run.steps import BY_NAME
from storage.errors import BadImage, NotYet
from storage.receipts import Skipped
from storage.records import seal

PAGE = Path(__file__).parents[2] / "docs" / "howto-python.md"


def test_the_documented_lines_give_what_the_jobs_stored(decided_run, tmp_path, monkeypatch):
    of_the_run, of_a_drawing, of_seeds, of_a_new_picture, *_ = re.findall(
        r"```python\n(.*?)```", PAGE.read_text(), re.S
    )
    space: dict[str, object] = {}
    exec(of_the_run.replace("/data/run0", decided_run.uri).replace("cats__1", "scene_0012"), space)
    assert space["same_maps"] and space["same_mask"]
    labels, run = space["mask"], space["run"]
    assert labels.dtype == run.stored_labels("scene_0012").dtype == np.uint8
    assert space["maps"].max.dtype == run.stored_maps("scene_0012").max.dtype
    assert labels.shape == (120, 160) and len(np.unique(labels)) > 2

    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    exec(of_a_drawing, space)
    assert len(np.unique(np.asarray(Image.open("drawn.png")))) > 100 and space["large"].shape[1:] == (120, 160)

    exec(of_seeds, space)
    assert Path("seeds.png").exists() and space["seeds"].shape == (120, 160)
    assert set(np.unique(space["seeds"])) == set(np.unique(space["run"].stored_seeds("scene_0012")))

    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: turn the stored pixels to the right
    Image.fromarray(np.rot90(space["image"])).save("new.jpg", format="PNG", exif=turned)
    exec(of_a_new_picture, space)
    np.testing.assert_array_equal(np.asarray(Image.open("mask.png")), labels)


def test_the_documented_data_set_has_each_image_with_its_own_labels(painted_run):
    with connect("in-process") as connection:
        launch_step(painted_run, connection, "pseudo_labels")
    (lines,) = re.findall(r"```python\n(import torch\nfrom torch.utils.data.*?)```", PAGE.read_text(), re.S)
    space: dict[str, object] = {"run": open_trained(painted_run.uri)}
    exec(lines, space)
    items, run = space["Labelled"](space["run"], "train"), space["run"]
    assert len(items) == sum(row.split == "train" and bool(row.labels) for row in painted_run.manifest().iter_rows())
    for (pixels, labels), image_id in zip(items, items.ids, strict=False):
        assert np.array_equal((pixels * 255).round().byte().permute(1, 2, 0), run.image(image_id))
        assert np.array_equal(labels, run.stored_labels(image_id, "pseudo_labels"))


@pytest.mark.skipif(find_spec("timm") is None, reason="the network is timm's")
def test_the_documented_lines_for_own_photographs_learn_from_the_weights_and_make_a_map(tmp_path, monkeypatch):
    (lines,) = re.findall(
        r"```python\n(from pathlib import Path\n\nimport torch\n\nfrom ficklenet.*?)```", PAGE.read_text(), re.S
    )
    photographs = sorted((PAGE.parent / "examples" / "photographs").glob("*.jpg"))[:2]
    for file in photographs:
        (tmp_path / "photos" / file.stem).mkdir(parents=True)
        shutil.copy(file, tmp_path / "photos" / file.stem / "1.jpg")
    shutil.copy(photographs[0], tmp_path / "new.jpg")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict[str, object] = {}
    exec(lines.replace("SIZE, EPOCHS = 321, 10", "SIZE, EPOCHS = 161, 4"), space)
    model, spec, maps = space["model"], space["spec"], space["maps"]
    assert spec.class_names == tuple(file.stem for file in photographs)
    new = FickleNet(spec).backbone.state_dict()
    weights = {name: value for name, value in model.backbone.state_dict().items() if name.endswith("weight")}
    assert not any(torch.equal(value, new[name]) for name, value in weights.items() if value.ndim == 4)
    assert float(space["loss"].detach()) < math.log(2)  # that of logits 0
    assert maps.max_BSHW.shape == (1, 1, *spec.grid) and float(maps.max_BSHW.max()) == 1
    size = space["image"].shape[:2]
    assert space["large"].shape == (1, *size) and space["mask"].shape == size
    assert set(np.unique(space["mask"])) == {0, 1}


def test_maps_and_scores_are_those_of_the_job_for_every_class(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    for image_id in ("scene_0000", "scene_0005"):
        stored, classes = run.stored_maps(image_id), [run.class_names[n] for n in run.entry(image_id).labels]
        found = run.localize(run.image(image_id), classes, image_id)
        for name in ("classes", "max", "mean", "score"):
            np.testing.assert_array_equal(getattr(found, name), getattr(stored, name))
        with pytest.warns(UserWarning, match=r"^no image 'another id'; .*\. Maps with this id are equal to no stored"):
            other = run.localize(run.image(image_id), classes, "another id")
        assert not np.array_equal(other.max, stored.max), "the masks follow from the id"


def test_a_notebook_computes_with_one_thread_as_the_jobs_do(predicted_run):
    """Networks of usual size have other last bits with several threads; this tiny one has not."""
    run, threads = open_trained(predicted_run.uri), list[int]()
    image, before = run.image(run.image_ids[0]), torch.get_num_threads()
    for network in (run.classifier, run.network):
        network.backbone.register_forward_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    torch.set_num_threads(3)
    try:
        run.localize(image, run.class_names[:1])
        run.predict(image)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(threads) == {1} and len(threads) >= 2


def test_maps_come_in_the_order_of_the_given_classes(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    image, names = run.image("scene_0000"), run.class_names
    given = [names[3], names[0], names[2]]
    found, ascending = (run.localize(image, classes) for classes in (given, sorted(given, key=names.index)))
    assert [names[number] for number in found.classes] == given
    for name in ("max", "mean", "score"):
        np.testing.assert_array_equal(getattr(found, name), getattr(ascending, name)[[2, 0, 1]])
    with pytest.raises(ValueError, match=f"^localize: given '{names[1]}' more than once; give each class once"):
        run.localize(image, [names[1], names[0], names[1]])


@pytest.mark.parametrize(
    "image",
    [
        *("file.jpg", np.zeros((4, 5)), np.zeros((4, 5, 3))),
        *(np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)),
    ],
)
def test_anything_but_a_colour_image_is_refused(image, finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    for call in (lambda: run.localize(image, run.class_names[:1]), lambda: run.predict(image)):
        with pytest.raises(ValueError, match=r"given .*, allowed: a uint8 array \(height, width, 3\), RGB"):
            call()


def test_one_class_in_place_of_a_list_and_an_unknown_id_are_named(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    with pytest.raises(ValueError, match=r"given the text 'ring', allowed: a list of class names, such as \['ring'\]"):
        run.localize(np.zeros((4, 5, 3), np.uint8), "ring")
    with pytest.raises(ValueError, match=r"given the text 'scene_0000', allowed: .*, such as \['\w+'\]\.") as refused:
        run.localize(np.zeros((4, 5, 3), np.uint8), "scene_0000", ["ring"])
    assert str(refused.value).split("'")[3] in run.class_names
    with pytest.raises(ValueError, match=r"given 0, allowed: some of .*\. Give the name: class 0 is 'star'\."):
        run.localize(np.zeros((4, 5, 3), np.uint8), [0])
    with pytest.raises(ValueError, match=r"given 'rings', allowed: some of .*\. Did you mean 'ring'\?"):
        run.localize(np.zeros((4, 5, 3), np.uint8), ["rings"])
    with pytest.raises(KeyError, match="no image 'ring'; the first id is 'scene_0000'"):
        run.image("ring")
    with pytest.raises(KeyError, match=r"no image 'scene-0003'\. Did you mean 'scene_0003'\?"):
        run.image("scene-0003")
    with pytest.raises(KeyError, match=r"^\"no image 'scene_001'\. Did you mean 'scene_0010'\?\"$"):
        run.image("scene_001")
    picture = np.zeros((4, 5, 3), np.uint8)
    for wrong, given in ((0, "0"), (picture, "a ndarray")):
        for call in (run.image, run.stored_labels, lambda wrong: run.localize(picture, ["ring"], wrong)):
            with pytest.raises(TypeError, match=f": given {given}, allowed: the id of an image, which is a text; run"):
                call(wrong)


def test_enlarged_maps_lie_where_the_network_has_its_cells(finished_maps_run, monkeypatch):
    run = open_trained(finished_maps_run.uri)
    maps = run.stored_maps("scene_0000").max
    large = run.enlarge(maps, (120, 160))
    assert large.shape == (len(maps), 120, 160) and large.dtype == np.float32
    corners = (slice(None), [0, 0, -1, -1], [0, -1, 0, -1])
    np.testing.assert_allclose(large[corners], maps[corners], atol=1e-6)
    patches = SimpleNamespace(grid=(9, 9), geometry=GridGeometry(8, "centres"))  # as those of a vision transformer
    monkeypatch.setattr(trained_run, "require_network", lambda *_: SimpleNamespace(spec=patches))
    assert not np.allclose(run.enlarge(maps, (120, 160)), large)
    with pytest.raises(
        ValueError, match=r"^enlarge: given float64 \(3, 4\), allowed: a numpy array \(\.\.\., 9, 9\), such"
    ):
        run.enlarge(np.zeros((3, 4)), (120, 160))


def test_labels_are_enlarged_without_new_values(seeded_run_folder):
    run = open_trained(seeded_run_folder)
    seeds = run.stored_seeds("scene_0000")
    large = run.enlarge(seeds, (120, 160))
    assert large.dtype == seeds.dtype and large.shape == (120, 160)
    assert set(np.unique(large)) <= set(np.unique(seeds)) and (large[0, 0], large[-1, -1]) == (
        seeds[0, 0],
        seeds[-1, -1],
    )
    both = run.enlarge(np.stack([seeds == 0, seeds == 255]), (120, 160))
    np.testing.assert_array_equal(both, np.stack([large == 0, large == 255]))
    assert run.enlarge(np.zeros((0, *seeds.shape), np.uint8), (120, 160)).shape == (0, 120, 160)


def test_what_cannot_be_enlarged_is_refused_in_one_sentence(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    maps = run.stored_maps("scene_0000")
    for wrong, given in ((maps, "a ImageMaps"), (xarray.DataArray(maps.max), "a DataArray"), (None, "a NoneType")):
        with pytest.raises(
            ValueError, match=rf"^enlarge: given {given}, allowed: a numpy array \(\.\.\., \d+, \d+\), such"
        ):
            run.enlarge(wrong, (120, 160))
    for size in (300, (120, 160, 3), (120.5, 160), (0, 160), "ab"):
        with pytest.raises(
            ValueError, match=r"^enlarge: given the size .*, allowed: \(height, width\) in pixels, such as im"
        ):
            run.enlarge(maps.max, size)
    assert run.enlarge(maps.max, np.array([120, 160]).tolist()).shape[1:] == (120, 160)


def test_a_picture_outside_the_run_is_read_upright_and_within_the_limits_of_the_run(finished_maps_run, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "phone.jpg", exif=turned)
    run = open_trained(finished_maps_run.uri)
    assert run.read(tmp_path / "phone.jpg").shape == run.read(str(tmp_path / "phone.jpg")).shape == (40, 30, 3)
    with pytest.raises(BadImage, match=f"^{tmp_path}/gone.jpg: missing: no such file$"):
        run.read(tmp_path / "gone.jpg")
    with pytest.raises(BadImage, match="pixels"):
        open_trained(finished_maps_run.uri, ["images.max_pixels=1000"]).read(tmp_path / "phone.jpg")


def test_classes_without_an_order_are_refused(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    names = run.class_names[:2]
    for wrong, given in (
        (set(names), "set"),
        (dict.fromkeys(names), "dict"),
        (iter(names), "tuple_iterator"),
        (3, "int"),
    ):
        with pytest.raises(
            ValueError, match=rf"^localize: given a {given}, allowed: a list of class names, such as \["
        ):
            run.localize(np.zeros((4, 5, 3), np.uint8), wrong)


def test_a_choice_that_is_not_true_or_false_is_refused(finished_maps_run):
    run = open_trained(finished_maps_run.uri)
    for wrong in ("false", 0):
        with pytest.raises(ValueError, match=rf"^predict: given refine={wrong!r}, allowed: True, False, or None"):
            run.predict(np.zeros((4, 5, 3), np.uint8), refine=wrong)


def test_the_path_of_a_steps_results_is_right_also_after_a_restart(seeded_run_folder, tmp_path, capsys):
    shutil.copytree(seeded_run_folder, tmp_path / "run")
    run = open_trained(tmp_path / "run")
    assert run.path("seeds") == str(tmp_path / "run" / "seeds")
    with connect("in-process") as connection:
        launch_step(run.run, connection, "seeds", restart=True)
    assert re.fullmatch(r"seeds/start-2-\w{8}", run.path("seeds").removeprefix(f"{tmp_path}/run/"))
    status.main(["--run", run.run.uri])
    assert f"\n  results, since a restart: {run.path('seeds')}\n" in capsys.readouterr().out
    assert "label" in xarray.open_zarr(f"{run.path('seeds')}/seeds.zarr", consolidated=False)
    for step, script in (("predictions", "predict_masks"), ("evaluation", "evaluate")):
        with pytest.raises(NotYet, match=rf"the step {step} has no results yet\. Run 'python jobs/{script}\.py"):
            run.path(step)
    with pytest.raises(ValueError, match="path: given the step 'masks', allowed: 'classifier', 'maps'"):
        run.path("masks")


def test_an_evaluation_without_masks_is_refused_as_the_command_refuses_it(drawn_images, tmp_path):
    bare = open_run(str(tmp_path / "run"))
    prepare(bare, [replace(image, mask_uri=None) for image in drawn_images], DRAWN_CLASS_NAMES)
    with pytest.raises(
        ValueError, match=r"^evaluate: none of the images \(.*\) has a mask, .* --masks FOLDER"
    ) as refused:
        evaluate.main(["--run", bare.uri])
    with pytest.raises(NotYet) as asked:
        open_trained(bare.uri).path("evaluation")
    assert str(asked.value) == f"the step evaluation has no results yet. {refused.value}"


def test_a_network_that_is_not_trained_is_named_by_the_call_that_needs_it(drawn_images, tmp_path):
    bare = open_run(str(tmp_path / "run"))
    prepare(bare, drawn_images, DRAWN_CLASS_NAMES)
    run = open_trained(bare.uri)
    image = run.image(run.image_ids[0])
    for name, call in {
        "classifier": lambda: run.classifier,
        "network": lambda: run.network,
        "localize": lambda: run.localize(image, run.class_names[:1]),
        "predict": lambda: run.predict(image),
    }.items():
        with pytest.raises(NotYet, match=f"^{name}: .* has no trained (classifier|segmentation network)"):
            call()


def test_a_network_is_read_once(predicted_run):
    run = open_trained(predicted_run.uri)
    assert run.classifier is run.classifier and run.network is run.network


def test_every_reader_of_outdated_results_or_networks_warns(predicted_run, tmp_path):
    with connect("in-process") as connection:
        launch_step(open_run(predicted_run.uri, None, ["seeds.theta=0.5"]), connection, "seeds", restart=True)
    run = open_trained(predicted_run.uri)
    image = run.image("scene_0012")
    for read, step in (
        (lambda: run.predict(image), "segmenter"),
        (lambda: run.network, "segmenter"),
        (lambda: run.path("segmenter"), "segmenter"),
        (lambda: run.path("predictions"), "predictions"),
        (lambda: run.stored_labels("scene_0012"), "predictions"),
    ):
        with pytest.warns(UserWarning, match=f"^the step {step} of .* is outdated") as warned:
            read()
        assert [warning.filename for warning in warned] == [__file__]  # it names the line of the caller
    steps = re.findall(r"'python jobs/\w+\.py --run \S+ --restart (\w+)'", str(warned[0].message))
    assert steps == ["segmenter", "predictions"]  # made of an outdated network, predictions would be outdated again
    with connect("in-process") as connection:
        for step in steps:
            launch_step(open_run(predicted_run.uri), connection, step, restart=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = open_trained(predicted_run.uri)
        run.stored_seeds("scene_0012"), run.path("seeds"), run.stored_maps("scene_0012")
        run.stored_labels("scene_0012"), run.network
        run.localize(image, run.class_names[:1])


@pytest.mark.parametrize(
    "setting",
    [
        *("seeds.theta=0.9", "maps.max_classes=2", "predictions.splits=train", "images.input_size=73", "unit_size=5"),
        *("classifier.kernel_size=7", "segmenter.weights=random", "classifier.drop_rate=0.5", "cluster.cpus=1"),
    ],
)
def test_settings_without_effect_are_refused(setting, segmented_run_folder):
    key = setting.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^settings: {key} has no effect here.*Allowed: seed, images\.max_pixels, "):
        open_trained(segmented_run_folder, [setting])


def test_settings_as_the_run_has_them_are_accepted_and_a_device_is_an_argument(segmented_run_folder):
    assert (
        open_trained(segmented_run_folder, ["maps.num_samples=3", "seeds.theta=0.35"]).run.config.maps.num_samples == 3
    )
    with pytest.raises(ValueError, match=r"maps\.device has no effect here. Give open_trained\(path, device='cpu'\)"):
        open_trained(segmented_run_folder, ["maps.device=cpu"])


@pytest.mark.parametrize("setting", ["seed=7", "maps.num_samples=3", "maps.drop_rate=0.1", "maps.percentile=20"])
def test_settings_of_maps_act_on_localize(setting, finished_maps_run):
    def maximum(*settings: str) -> np.ndarray:
        run = open_trained(finished_maps_run.uri, settings)
        return run.localize(run.image("scene_0000"), run.class_names[:1], "scene_0000").max

    assert not np.array_equal(maximum(), maximum(setting))


def test_the_allowed_settings_are_keys():
    assert set(ACTING) <= set(config_keys())


def test_other_settings_and_unknown_classes(predicted_run):
    run = open_trained(predicted_run.uri, ["predictions.mirror=true"])
    image = run.image("scene_0013")
    assert run.predict(image, refine=False).shape == image.shape[:2]
    with pytest.raises(ValueError, match=r"localize: given 'unicorn', allowed: some of "):
        run.localize(image, ["unicorn"])
    with pytest.raises(ValueError, match="predict: given an image with the values 0 and 1 only, allowed: RGB with val"):
        run.predict((image / 255).astype(np.uint8))
    with pytest.raises(KeyError, match="no image 'gone'"):
        run.image("gone")
    with pytest.raises(ValueError, match="does not exist"):
        open_trained(f"{predicted_run.uri}_of_nothing")


def test_a_path_opens_a_run_that_knows_its_ids_and_prints_short(finished_maps_run, monkeypatch):
    folder = Path(finished_maps_run.uri)
    monkeypatch.setenv("HOME", str(folder.parent))
    run = open_trained(folder)
    assert open_trained(f"~/{folder.name}").run.uri == open_trained(Path("~", folder.name)).run.uri == str(folder)
    assert repr(run) == f"TrainedRun({str(folder)!r}, device={run.device!r})"
    assert run.image_ids == tuple(row.image_id for row in run.run.manifest().iter_rows()) and len(run.image_ids) == 14


@pytest.mark.parametrize(
    "inside", ["maps", "maps/maps.zarr", "maps/maps.zarr/max", "run.json", "manifest.parquet", "none"]
)
def test_a_place_inside_a_run_names_the_run(inside, mapped_run_folder):
    with pytest.raises(
        ValueError, match=f"is no run, but it lies in one. Give the path of this run, {mapped_run_folder}.$"
    ):
        open_trained(mapped_run_folder / inside)


def test_a_picture_in_place_of_a_run_is_called_a_file(tmp_path):
    (tmp_path / "new.jpg").write_bytes(b"")
    sentence = "new.jpg is a file, and a run is a folder. Give the folder that prepare_dataset.py has made."
    with pytest.raises(ValueError, match=sentence):
        open_trained(tmp_path / "new.jpg")
    with pytest.raises(ValueError, match=sentence):
        status.main(["--run", str(tmp_path / "new.jpg")])
    with pytest.raises(ValueError, match=sentence):
        prepare_dataset.main(["--run", str(tmp_path / "new.jpg"), "--folders", str(tmp_path)])


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ("predictions.mirror=true", "the text 'predictions.mirror=true'"),
        ({"predictions.mirror": True}, "{'predictions.mirror': True}"),
        ([1], r"\[1\]"),
        (["maps.num_samples"], r"\['maps.num_samples'\]"),
    ],
)
def test_settings_that_are_no_list_of_texts_are_refused(settings, given, mapped_run_folder):
    with pytest.raises(ValueError, match=f"^settings: given {given}, allowed: a list of texts, such as .*mirror=true'"):
        open_trained(mapped_run_folder, settings)


def test_other_things_than_a_path_are_refused(mapped_run_folder):
    run = open_trained(mapped_run_folder)
    for call in (open_trained, run.read):
        with pytest.raises(TypeError, match=r"^path: given a (int|ndarray), allowed: a file's or folder's path"):
            call(5 if call is open_trained else np.zeros((9, 9, 3), np.uint8))


def test_maps_and_runs_print_short(mapped_run_folder):
    maps = open_trained(mapped_run_folder).stored_maps("scene_0012")
    assert re.fullmatch(r"ImageMaps\(classes \[[\d, ]+\], \d+ x \d+ cells\)", repr(maps))


def test_a_device_that_is_not_there_is_refused_at_once(mapped_run_folder, monkeypatch):
    with pytest.raises(ValueError, match=r"^device: given 'gpu', allowed: 'auto', 'cpu', 'cuda'\.$"):
        open_trained(mapped_run_folder, device="gpu")
    with pytest.raises(ValueError, match=r"given 'cuda:0', .* set CUDA_VISIBLE_DEVICES\.$"):
        open_trained(mapped_run_folder, device="cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert open_trained(mapped_run_folder).device == open_trained(mapped_run_folder, device="cuda").device == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_trained(mapped_run_folder).device == open_trained(mapped_run_folder, device="cpu").device == "cpu"
    with pytest.raises(ValueError, match="torch finds no GPU on this machine; give device='cpu'"):
        open_trained(mapped_run_folder, device="cuda")


def test_results_that_are_not_there_name_the_step_or_the_command(seeded_run_folder):
    run = open_trained(seeded_run_folder)
    assert run.stored_seeds("scene_0000").shape == run.stored_maps("scene_0000").max.shape[1:]
    for wrong in ("masks", "seeds"):
        with pytest.raises(ValueError, match=f"given the step '{wrong}', allowed: 'predictions', 'pseudo_labels'"):
            run.stored_labels("scene_0000", wrong)
    with pytest.raises(NotYet, match="the step pseudo_labels is not done"):
        run.stored_labels("scene_0012", "pseudo-labels")  # as status.py writes it
    with pytest.raises(ValueError, match="given the step 'seeds', allowed: 'maps', 'refined'"):
        run.stored_maps("scene_0000", "seeds")
    for step, script in (("pseudo_labels", "make_pseudo_labels"), ("predictions", "predict_masks")):
        with pytest.raises(KeyError, match="no image 'gone'"):
            run.stored_labels("gone", step)
        with pytest.raises(NotYet, match=f"the step {step} is not done for this image yet. Run 'python jobs/{script}"):
            run.stored_labels("scene_0012", step)
    with pytest.raises(NotYet, match=r"jobs/refine_maps\.py"):
        run.stored_maps("scene_0000", "refined")


def test_maps_and_seeds_before_they_are_made_name_the_command(trained_run_folder):
    run = open_trained(trained_run_folder)
    for read, script in ((run.stored_maps, "generate_maps"), (run.stored_seeds, "aggregate_seeds")):
        with pytest.raises(NotYet, match=f"Run 'python jobs/{script}.py --run .*' first"):
            read("scene_0000")
        with pytest.raises(KeyError, match="no image 'gone'"):
            read("gone")


def test_refined_maps_are_read_from_their_own_step(finished_maps_run):
    shutil.move(finished_maps_run.uri + "/maps", finished_maps_run.uri + "/refined")  # the two have the same format
    place = Path(finished_maps_run.uri, "refined", "step.json")
    content = json.loads(place.read_text())
    content["fingerprint"]["manifest"] = finished_maps_run.manifest().column_hash(BY_NAME["refined"].columns)
    place.write_bytes(seal({key: value for key, value in content.items() if key != "checksum"}))
    run = open_trained(finished_maps_run.uri)
    assert run.stored_maps("scene_0000", "refined").max.size
    with pytest.raises(NotYet, match="the step maps is not done"):
        run.stored_maps("scene_0000")


def test_results_stay_readable_after_images_are_added_to_their_unit(predicted_run, tmp_path, capsys):
    before = open_trained(predicted_run.uri)
    earlier_ids, table, picture = before.image_ids, tmp_path / "added.csv", tmp_path / "october.jpg"
    shutil.copy(before.entry("scene_0012").uri, picture)
    table.write_text(f"image,labels,split\n{picture},{before.class_names[0]},val\n")
    prepare_dataset.main(["--run", predicted_run.uri, "--csv", str(table), "--add"])
    run = open_trained(predicted_run.uri)
    assert run.image_ids == (*earlier_ids, "october")
    assert run.stored_labels("scene_0013").shape == (120, 160) and run.stored_maps("scene_0013").classes.ndim == 1
    for read in (run.stored_labels, run.stored_maps, run.stored_seeds):
        with pytest.raises(NotYet, match=r"october: the step .* is not done for this image yet"):
            read("october")


@pytest.mark.parametrize("step", ["maps", "seeds"])
def test_a_skipped_image_has_no_stored_maps_and_seeds(seeded_run, step):
    run, receipts = open_trained(seeded_run.uri), seeded_run.step(step)
    (receipt,) = (each for each in receipts.receipts().values() if each.start <= 5 < each.stop)
    receipts.write_receipt(replace(receipt, skipped=(Skipped("scene_0005", "empty file"),)))
    with pytest.raises(ValueError, match=rf"^scene_0005: the step {step} skipped this image \(empty file\)"):
        getattr(run, f"stored_{step}")("scene_0005")


def test_images_without_predictions_say_why(predicted_run):
    run = open_trained(predicted_run.uri)
    with pytest.raises(ValueError, match=r"scene_0000: no predictions are made of its split 'train', only of val "):
        run.stored_labels("scene_0000")
    receipt = predicted_run.step("predictions").receipts()[3]
    predicted_run.step("predictions").write_receipt(replace(receipt, skipped=(Skipped("scene_0013", "empty file"),)))
    run = open_trained(predicted_run.uri)
    assert run.finished_ids("predictions") == ("scene_0012",)  # of the predicted split
    every = [row.image_id for row in predicted_run.manifest().iter_rows() if not row.problem]
    assert list(run.finished_ids("seeds")) == every
    with pytest.raises(NotYet, match="the step refined has no results yet"):
        run.finished_ids("refined")
    with pytest.raises(ValueError, match=r"scene_0013: the step predictions skipped this image \(empty file\)"):
        run.stored_labels("scene_0013")
    assert run.stored_labels("scene_0012").shape == (120, 160)
