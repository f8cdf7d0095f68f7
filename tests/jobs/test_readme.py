"""The commands of README, the tutorials and the page of all steps run as they stand, with other places and settings."""

import importlib
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from PIL import Image

from ficklenet.backbones import build_backbone
from jobs import prepare_dataset, run_pipeline
from jobs.exports.after_import import next_commands
from jobs.run.directory import open_run
from storage.image_table import read_image_table
from storage.images import read_mask
from storage.location import Location
from storage.voc import VOC_CLASSES

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
README, STEPS, DATA, PYTHON = (
    (ROOT / name).read_text() for name in ("README.md", "docs/steps.md", "docs/data.md", "docs/howto-python.md")
)
TINY = """
unit_size = 8
images.input_size = 65
classifier = {backbone = "small", weights = "none", kernel_size = 3, epochs = 1, min_steps = 1}
maps.num_samples = 4
segmenter = {backbone = "small", weights = "none", dilations = [2], epochs = 1, batch_size = 4, min_steps = 1}
cluster.address = "in-process"
"""
# Of a shell, or with a Ray of its own
NOT_RUN = ("make ", "source ", "export ", "ray start", "(umask 077; ray get-auth-token", "tensorboard ")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def commands(page: str, *, is_trial: bool = False) -> list[list[str]]:
    """Every line of a page's shell blocks that runs a job, split into words; those of the trial apart."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith(("#", *NOT_RUN))]
    assert all("python jobs/" in line for line in wanted), "a kind of command that this test does not know"
    wanted = [line for line in wanted if ("/data/trial" in line) == is_trial]
    return [shlex.split(line[line.index("python jobs/") :], comments=True)[1:] for line in wanted]


@pytest.fixture
def places(drawn_images, coco_folder, tmp_path, monkeypatch) -> dict[str, str]:
    """What README's places stand for here: drawn scenes as a devkit, as COCO and as a table."""
    devkit, photos = tmp_path / "VOC2012", tmp_path / "photos"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClassAug", "Saliency"):
        (devkit / folder).mkdir(parents=True)
    photos.mkdir()
    splits: dict[str, list[str]] = {"train_aug": [], "val": []}
    labels, table = {}, ["image,labels,split"]
    for image in drawn_images:
        splits["val" if image.split == "val" else "train_aug"].append(image.image_id)
        shutil.copy(image.uri, photos)
        Image.open(image.uri).save(devkit / "JPEGImages" / f"{image.image_id}.jpg")
        shutil.copy(image.mask_uri, devkit / "SegmentationClassAug" / f"{image.image_id}.png")
        truth = read_mask(image.mask_uri, range(1, 6))
        salient = Image.fromarray(np.where(truth > 0, 255, 0).astype(np.uint8))
        salient.save(devkit / "Saliency" / f"{image.image_id}.png")
        present = set(np.unique(truth)) - {0, 255}
        labels[image.image_id] = np.array([number in present for number in range(1, len(VOC_CLASSES) + 1)], float)
        table.append(f"{Path(image.uri).name},{';'.join(image.labels)},{image.split}")
    np.save(devkit / "cls_labels.npy", np.array(labels, dtype=object), allow_pickle=True)
    for split, ids in splits.items():
        (devkit / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(ids))
    for split in ("train", "val"):
        (coco_folder / split).rename(coco_folder / f"{split}2017")
        annotations = coco_folder / "annotations"
        (annotations / f"instances_{split}.json").rename(annotations / f"instances_{split}2017.json")
    for image in drawn_images:
        (tmp_path / "folders" / image.labels[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(image.uri, tmp_path / "folders" / image.labels[0])
    (tmp_path / "labels.csv").write_text("\n".join(table))
    (tmp_path / "tiny.toml").write_text(TINY)
    torch.save(build_backbone("small").state_dict(), tmp_path / "weights.pt")
    monkeypatch.chdir(tmp_path)
    return {
        "/data/VOC2012": str(devkit),
        "/data/coco": str(coco_folder),
        "--folders /data/photos": f"--folders {tmp_path / 'folders'}",
        "/data/photos": str(photos),
        "/data/vgg16.pt": str(tmp_path / "weights.pt"),
        "s3://bucket/run1": str(tmp_path / "run1"),
        **{f"docs/examples/{file.name}": "tiny.toml" for file in EXAMPLES.glob("*.toml")},
        **{f"/data/{name}": str(tmp_path / name) for name in ("pets", "voc", "coco5k")},
        **{f"/data/run{number}": str(tmp_path / f"run{number}") for number in range(4)},
    }


def run_commands(page: str, places: dict[str, str], capsys) -> list[str]:
    """Runs a page's commands here, and returns the names of the jobs."""
    for script, *words in commands(page):
        job = Path(script).stem
        for place, here in places.items():
            words = shlex.split(shlex.join(words).replace(place, here))
        tiny = ["--config", "tiny.toml"] if job == "prepare_dataset" and "--config" not in words else []
        importlib.import_module(f"jobs.{job}").main([*tiny, *words])
        assert capsys.readouterr().out, f"{job} {words} says nothing"
    return [Path(script).stem for script, *_ in commands(page)]


def test_readmes_three_commands_and_its_python_run_as_they_stand(places, capsys):
    assert run_commands(README, places, capsys) == ["prepare_dataset", "run_pipeline", "export_labels"]
    (code,) = blocks(README, "python")
    run = open_run(places["/data/run0"])
    (image_id, label) = next((row.image_id, row.labels[0]) for row in run.manifest().iter_rows())
    name = run.manifest().class_names[label]
    code = code.replace("/data/run0", run.uri).replace("cats__1", image_id).replace("cats", name)
    space: dict[str, object] = {}
    exec(code, space)
    maps, mask, image = space["maps"], space["mask"], space["image"]
    assert maps.max.shape[0] == 1 and 0 <= maps.max.min() <= maps.max.max() <= 1  # type: ignore[attr-defined]
    assert mask.shape == image.shape[:2]  # type: ignore[attr-defined]


def test_the_commands_of_all_steps_run_as_they_stand(places, capsys):
    jobs = run_commands(STEPS, places, capsys)
    assert len(jobs) >= 15 and {"prepare_dataset", "generate_maps", "predict_masks", "run_pipeline", "status"} <= set(
        jobs
    )
    run = Path(places["/data/run1"])
    assert len(list((run / "exports").rglob("*.png"))) == 2  # the finest labels: predictions of val
    assert open_run(places["/data/run2"]).manifest().num_images == 14
    assert open_run(places["/data/run3"]).manifest().num_images == 14
    _read_maps_as_the_page_does(run)


@pytest.mark.cluster  # two whole pipelines; the page of all steps runs nearly the same commands in `make test`
@pytest.mark.parametrize(
    ("page", "result"),
    [("tutorial-voc.md", "voc/report/index.html"), ("tutorial-coco.md", "coco5k/predictions/labels/scene_0012.png")],
)
def test_the_commands_of_the_tutorials_of_data_sets_run_as_they_stand(page, result, places, tmp_path, capsys):
    run_commands((ROOT / "docs" / page).read_text(), places, capsys)
    assert (tmp_path / result).exists()


def test_own_photographs_become_masks_and_are_corrected_as_the_tutorials_say(places, tmp_path, capsys):
    own, corrections = ((ROOT / "docs" / f"tutorial-{name}.md").read_text() for name in ("own-photographs", "cvat"))
    run_commands(own, places, capsys)
    run = open_run(places["/data/pets"])
    masks = {file.stem for file in (tmp_path / "pets/pseudo_labels/labels").glob("*.png")}
    assert masks == {row.image_id for row in run.manifest().iter_rows()}, "not every photograph has a mask"
    export, after = corrections.split("## 4. Import")
    run_commands(export, places, capsys)
    corrected = tmp_path / "pets/exports/cvat-pseudo_labels-min100/annotations.xml"
    tree = ElementTree.parse(corrected)
    for image in tree.getroot().iter("image"):  # the person draws the outline of an object
        points = "5,5;60,5;60,60;5,60"
        ElementTree.SubElement(image, "polygon", label=run.manifest().class_names[0], points=points, z_order="0")
    tree.write(corrected)
    run_commands(after, {**places, "annotations.xml": str(corrected)}, capsys)
    assert list((tmp_path / "pets/corrected").iterdir()) and list((tmp_path / "pets/predictions/labels").iterdir())
    measured = json.loads((tmp_path / "pets/evaluation/metrics.json").read_bytes())["metrics"]
    found = {(*each["splits"], *each["trained_on"]) for each in measured if each["labels"] == "predictions"}
    assert found == {("val",)}


def test_masks_of_new_photographs_are_corrected_and_trained_on_as_the_page_says(places, tmp_path, capsys):
    page = (ROOT / "docs" / "howto-new-images.md").read_text()
    section = page.split("## Correct masks for new images\n")[1].split("\n## ")[0]
    predicting, importing, training = (f"```bash\n{block}```" for block in blocks(section, "bash"))
    run = places["/data/voc"]
    source = ["--folders", str(tmp_path / "folders"), "--val-fraction", "0.2"]
    prepare_dataset.main(["--run", run, *source, "--config", "tiny.toml"])
    run_pipeline.main(["--run", run])
    (tmp_path / "october").mkdir()
    for number, photo in enumerate(sorted((tmp_path / "photos").iterdir())[:4]):
        shutil.copy(photo, tmp_path / "october" / f"new_{number}.png")
    places = {**places, "/data/october": str(tmp_path / "october")}
    run_commands(predicting, places, capsys)
    corrected = tmp_path / "october_masks/exports/cvat-predictions-min100/annotations.xml"
    tree = ElementTree.parse(corrected)
    first, second, *_ = tree.getroot().iter("image")
    for image, label in ((first, 0), (second, 1)):  # the person draws the outline of an object
        for shape in list(image):
            image.remove(shape)
        name = open_run(run).manifest().class_names[label]
        ElementTree.SubElement(image, "polygon", label=name, points="5,5;60,5;60,60;5,60", z_order="0")
    tree.write(corrected)
    run_commands(importing, {**places, "annotations.xml": str(corrected)}, capsys)
    _, printed = next_commands(open_run(str(tmp_path / "october_masks")), ["new"])  # as the import printed them
    documented = [
        " ".join(words).replace("/data/voc", run).replace("/data/october", places["/data/october"])
        for words in commands(training)
    ]
    assert re.findall(r"'python (.+?)'(?:, then|$)", printed) == documented
    run_commands(training, places, capsys)
    manifest = open_run(run).manifest()
    added = [row for row in manifest.iter_rows() if row.split == "corrected"]
    assert [(row.image_id, row.labels) for row in added] == [("new_0", (0,)), ("new_1", (1,))]
    for row in added:
        assert row.mask_uri
        mask = read_mask(row.mask_uri, manifest.class_values)
        assert set(np.unique(mask)) == {0, row.labels[0] + 1} and (mask[5:60, 5:60] > 0).all()
    trained = json.loads((tmp_path / "voc/segmenter/step.json").read_text())["fingerprint"]
    assert trained["segmenter"]["strong_splits"] == ["corrected"]


def test_the_example_of_a_table_says_what_it_says_it_does(tmp_path):
    (table,) = blocks(DATA, "csv")
    (tmp_path / "labels.csv").write_text(table)
    source = read_image_table(Location(str(tmp_path / "labels.csv")), Location("/data/photos"))
    first, second, third = source.images
    assert (first.labels, first.split, first.mask_uri) == (("cat", "dog"), "train", "/data/photos/masks/0001.png")
    assert (second.labels, second.split, second.mask_uri) == (("dog",), "val", None)
    assert (third.labels, third.uri) == ((), "/data/photos/more/0003.jpg")
    assert table.replace("\n", "\n    ").strip() in prepare_dataset.EXAMPLES, "--help shows another table"


def test_the_trial_of_own_photographs_runs_to_the_report(places, tmp_path):
    """Only its epochs are fewer here, and there is no Ray."""
    trial, fewer = str(tmp_path / "trial"), ["classifier.epochs=2", "segmenter.epochs=1", "cluster.address=in-process"]
    settings = [word for value in fewer for word in ("--set", value)]
    here = {"/data/trial": trial, "/data/photos": str(tmp_path / "folders"), "docs/examples": str(EXAMPLES)}
    (_, *prepare_words), (_, *pipeline_words) = commands(README, is_trial=True)
    for job, words in ((prepare_dataset, [*prepare_words, *settings]), (run_pipeline, pipeline_words)):
        for place, replacement in here.items():
            words = [word.replace(place, replacement) for word in words]
        job.main(words)
    predicted = {file.stem for file in (tmp_path / "trial/predictions/labels").glob("*.png")}
    assert predicted >= {row.image_id for row in open_run(trial).manifest().iter_rows() if row.split == "val"} != set()
    assert (tmp_path / "trial/report/index.html").exists()


def _read_maps_as_the_page_does(run: Path) -> None:
    """The block 'Read the stores with xarray', and what it claims of shapes and types."""
    (code,) = (block for block in blocks(PYTHON, "python") if "xarray" in block)
    space: dict[str, object] = {}
    exec(code.replace("/data/run0", str(run)).replace("cats__1", "scene_0003"), space)
    one = space["one"]
    assert isinstance(one, xarray.Dataset)
    assert one["max"].isel(slot=0).dims == ("y", "x") and one["max"].dtype == np.float16
    assert one["mean"].shape == one["max"].shape and one["score"].shape == one["classes"].shape
    assert space["seeds"]["label"].dims == ("image", "y", "x")  # type: ignore[index]
    assert space["large"].shape[1:] == (120, 160)  # type: ignore[attr-defined]
    assert list(space["maps"].attrs["class_names"]) == list(VOC_CLASSES)  # type: ignore[attr-defined]
