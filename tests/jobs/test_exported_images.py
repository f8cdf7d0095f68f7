"""Images beside the labels of an export: every picture lies where its own labels are expected."""

import csv
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from cluster.connect import connect
from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import export_labels, import_masks, prepare_dataset
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from storage.class_folders import read_class_folders
from storage.label_folder import encode_label_png
from storage.location import Location
from storage.manifest import Manifest
from storage.sources import join_images

CAT, DOG = DRAWN_CLASS_NAMES[:2]


@pytest.fixture
def photos(drawn_images, tmp_path) -> Path:
    """Three photographs in folders of classes, and three of other sizes in `more`; one name is in both folders."""
    names = {
        "photos": (f"{CAT}/IMG_1.png", f"{CAT}/IMG_2.png", f"{DOG}/IMG_3.png"),
        "more": (f"{CAT}/IMG_1.png", f"{CAT}/IMG_9.png", f"{DOG}/IMG_8.png"),
    }
    paths = [tmp_path / folder / name for folder, found in names.items() for name in found]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(drawn_images[number].uri).crop((0, 0, 160 - 3 * number, 120 - 2 * number)).save(path)
    return tmp_path / "photos"


def run_of(map_images, folder: Path) -> Run:
    images, _ = join_images(read_class_folders(Location(str(folder))).images)
    run = map_images([replace(image, split="train") for image in images])
    compute(run, "seeds")
    return run


def compute(run: Run, *steps: str) -> None:
    Manifest.forget()
    with connect("in-process") as connection:
        for step in steps:
            launch_step(open_run(run.uri), connection, step)


def add(run: Run, folder: Path) -> None:
    prepare_dataset.main(["--run", run.uri, "--folders", str(folder), "--val-fraction", "0.4", "--add"])
    compute(run, "maps", "seeds")


def export(run: Run, out: Path, *flags: str) -> None:
    export_labels.main(["--run", run.uri, "--labels", "seeds", "--out", str(out), *flags])


def correct(run: Run, folder: Path) -> dict[str, np.ndarray]:
    """Imports a mask for every image, all different; the masks by the address of the picture."""
    folder.mkdir()
    masks = {}
    for number, row in enumerate(run.manifest().iter_rows()):
        mask = np.zeros((row.height, row.width), np.uint8)
        mask[5 : 20 + 7 * number, 5:60] = 1 + number % 2
        (folder / f"{row.image_id}.png").write_bytes(encode_label_png(mask))
        masks[row.uri] = mask
    import_masks.main(["--run", run.uri, "--masks", str(folder)])
    Manifest.forget()
    return masks


def commands(printed: str, *starts: str) -> list[list[str]]:
    found = [shlex.split(text) for text in re.findall(r"'([a-z]+ .*?)'(?= |\.|$)", printed)]
    return [each for each in found if tuple(each[: len(starts)]) == starts]


def require_own_labels(out: Path, masks: dict[str, np.ndarray]) -> None:
    """Every picture in images/ is the one that was corrected, and its text file has its own mask."""
    mask_of = {Path(uri).read_bytes(): mask for uri, mask in masks.items()}
    listed = [line for name in ("train", "val") for line in (out / f"{name}.txt").read_text().splitlines()]
    assert len(listed) == len(mask_of) == len(masks)
    for line in listed:
        mask = mask_of.pop((out / line).read_bytes())
        text = (out / "labels" / line.removeprefix("./images/")).with_suffix(".txt").read_text()
        drawn = np.zeros_like(mask)
        with Image.open(out / line) as picture:
            width, height = picture.size
        for number, *numbers in (list(map(float, row.split())) for row in text.splitlines()):
            outline = (np.reshape(numbers, (-1, 2)) * (width, height)).round().reshape(1, -1)
            runs = run_lengths.merge(run_lengths.frPyObjects(outline.tolist(), height, width))
            drawn[run_lengths.decode(runs) > 0] = number + 1
        np.testing.assert_array_equal(drawn, mask)


def test_the_printed_link_puts_every_picture_beside_its_own_labels(
    map_images, photos, tmp_path, tmp_path_factory, capsys
):
    run, out = run_of(map_images, photos), tmp_path_factory.mktemp("exports") / "yolo"
    capsys.readouterr()
    add(run, tmp_path / "more")
    printed = capsys.readouterr().out
    new = tmp_path / "more" / CAT / "IMG_1.png"
    assert (
        f"1 image with the same name as another image got a longer id: {new} is called 'more__{CAT}__IMG_1'" in printed
    )
    masks = correct(run, tmp_path / "masks")
    capsys.readouterr()
    export(run, out, "--format", "yolo")
    [link] = commands(capsys.readouterr().out, "ln")
    assert link == ["ln", "-s", str(tmp_path), str(out / "images")]  # one folder has all images under their names
    subprocess.run(link, check=True)
    require_own_labels(out, masks)
    export(run, out, "--format", "yolo")
    assert f"{out / 'images'} is a link to the images." in capsys.readouterr().out
    export(run, tmp_path / "yolo", "--format", "yolo")
    assert not commands(capsys.readouterr().out, "ln")  # a link to the folder in which it lies has no end


def test_copying_both_folders_by_hand_gives_no_picture_the_labels_of_another(map_images, photos, tmp_path):
    run, out = run_of(map_images, photos), tmp_path / "yolo"
    add(run, tmp_path / "more")
    export(run, out, "--format", "yolo")
    for folder in (photos, tmp_path / "more"):
        shutil.copytree(folder, out / "images", dirs_exist_ok=True)
    for picture in (out / "images").rglob("*.png"):
        assert not (out / "labels" / picture.relative_to(out / "images")).with_suffix(".txt").exists()


def test_copies_have_the_names_of_their_labels(map_images, photos, tmp_path, capsys):
    run, out = run_of(map_images, photos), tmp_path / "yolo"
    add(run, tmp_path / "more")
    masks = correct(run, tmp_path / "masks")
    export(run, out, "--format", "yolo")
    [copy] = commands(capsys.readouterr().out, "python", "jobs/export_labels.py")[-1:]
    wrong = out / "images" / "photos" / CAT / "IMG_1.png"
    wrong.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "more" / CAT / "IMG_1.png", wrong)  # as a user may have left it there
    export_labels.main(copy[2:])
    assert f"6 images copied to {out / 'images'}" in capsys.readouterr().out
    require_own_labels(out, masks)


def test_copies_are_not_written_through_a_link(map_images, photos, tmp_path):
    run, out = run_of(map_images, photos), tmp_path / "yolo"
    out.mkdir()
    (out / "images").symlink_to(photos)
    with pytest.raises(ValueError, match=rf"is or contains a link to {photos}/.*'rm {out}/images'"):
        export(run, out, "--format", "yolo", "--with-images")


def test_two_folders_without_a_shared_name_keep_the_names_of_the_source(map_images, photos, tmp_path, capsys):
    run, out = run_of(map_images, photos), tmp_path / "cvat"
    shutil.rmtree(tmp_path / "more" / CAT)
    add(run, tmp_path / "more")
    export(run, out, "--format", "cvat")
    printed = capsys.readouterr().out
    assert f'name="{DOG}/IMG_8.png"' in (out / "annotations.xml").read_text()
    assert "no folder has all images under these names" in printed
    [copy] = commands(printed, "python", "jobs/export_labels.py")[-1:]
    export_labels.main(copy[2:])
    names = re.findall(r'<image id="\d+" name="(.+?)"', (out / "annotations.xml").read_text())
    assert sorted(str(path.relative_to(out / "images")) for path in (out / "images").rglob("*.png")) == sorted(names)


def test_names_that_differ_only_by_their_suffix_have_labels_of_their_own(map_images, photos, tmp_path):
    Image.open(photos / CAT / "IMG_2.png").crop((0, 0, 90, 80)).save(photos / CAT / "IMG_2.jpg")
    shutil.rmtree(tmp_path / "more")
    run, out = run_of(map_images, photos), tmp_path / "yolo"
    masks = correct(run, tmp_path / "masks")
    export(run, out, "--format", "yolo", "--with-images")
    (out / "val.txt").touch()
    require_own_labels(out, masks)


def test_masks_of_an_export_before_images_were_added_come_back(map_images, photos, tmp_path):
    run = run_of(map_images, photos)
    correct(run, tmp_path / "masks")
    export(run, tmp_path / "before", "--format", "cvat")
    add(run, tmp_path / "more")
    export(run, tmp_path / "after", "--format", "cvat")
    assert f'name="photos/{CAT}/IMG_1.png"' in (tmp_path / "after" / "annotations.xml").read_text()
    for folder in ("before", "after"):
        table = tmp_path / f"{folder}.csv"
        file = tmp_path / folder / "annotations.xml"
        import_masks.main(["--run", run.uri, "--masks", str(file), "--table", str(table), "--keep-unchanged"])
        corrected = [row["image"] for row in csv.DictReader(table.open()) if row["split"] == "corrected"]
        assert {str(path) for path in photos.rglob("*.png")} <= set(corrected)


def test_an_export_whose_names_changed_is_begun_again(map_images, photos, tmp_path):
    run = run_of(map_images, photos)
    export(run, tmp_path / "out", "--format", "cvat")
    add(run, tmp_path / "more")
    with pytest.raises(ValueError, match="names"):
        export(run, tmp_path / "out", "--format", "cvat")


def test_label_studio_is_told_which_folder_to_serve(map_images, photos, tmp_path, capsys):
    run, out = run_of(map_images, photos), tmp_path / "tasks"
    export(run, out, "--format", "label-studio")
    printed = capsys.readouterr().out
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={out}, and add {out / 'images'} to the project" in printed
    subprocess.run(commands(printed, "ln")[0], check=True)
    for task in json.loads((out / "tasks.json").read_text()):
        assert (out / task["data"]["image"].removeprefix("/data/local-files/?d=")).exists()


@pytest.mark.parametrize("format", ["png", "hugging-face"])
def test_images_do_not_go_with_formats_that_name_no_files(map_images, photos, tmp_path, format: str):
    with pytest.raises(ValueError, match="--with-images does not go with"):
        export(run_of(map_images, photos), tmp_path / "out", "--format", format, "--with-images")


def test_images_on_s3_are_copied_from_several_places(s3_environment, map_images, photos, tmp_path, capsys):
    run, out = run_of(map_images, photos), tmp_path / "yolo"
    for path in (tmp_path / "more").rglob("*.png"):
        place = Location(f"s3://test-bucket/{tmp_path.name}/{path.relative_to(tmp_path)}")
        place.write_bytes(path.read_bytes())
    prepare_dataset.main(
        ["--run", run.uri, "--folders", f"s3://test-bucket/{tmp_path.name}/more", "--val-fraction", "0.4", "--add"]
    )
    compute(run, "maps", "seeds")
    local = {row.uri: str(tmp_path / row.uri.split(f"{tmp_path.name}/")[1]) for row in run.manifest().iter_rows()}
    masks = {local[uri]: mask for uri, mask in correct(run, tmp_path / "masks").items()}
    export(run, out, "--format", "yolo")
    [copy] = commands(capsys.readouterr().out, "python", "jobs/export_labels.py")[-1:]
    export_labels.main(copy[2:])
    require_own_labels(out, masks)
