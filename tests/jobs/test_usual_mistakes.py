"""The usual mistakes of a first preparation, and the sentence that each gets; docs/data.md lists the same."""

# ruff: noqa: E501  (a row of the table is a line)

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from jobs.prepare_dataset import main

DOC = Path(__file__).parents[2] / "docs" / "data.md"


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (90, 90, 90)).save(folder / name)


def table(text: str | bytes, *more: str, name: str = "labels.csv") -> Callable[[Path], list[str]]:
    """A table beside the pictures 0.jpg to 3.jpg."""

    def make(folder: Path) -> list[str]:
        pictures(folder, *(f"{number}.jpg" for number in range(4)))
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        return ["--csv", str(folder / name), *more]

    return make


def masks(pixels: np.ndarray, kind: str = "png") -> Callable[[Path], list[str]]:
    """Two images, a cat and a dog, with this mask each."""

    def make(folder: Path) -> list[str]:
        arguments = table(f"image,labels,split,mask\n0.jpg,cat,train,0.{kind}\n1.jpg,dog,val,1.{kind}\n")(folder)
        for number in range(2):
            Image.fromarray(pixels).save(folder / f"{number}.{kind}" if kind == "png" else folder / f"m{number}.{kind}")
        if kind != "png":
            (folder / "labels.csv").write_text(
                f"image,labels,split,mask\n0.jpg,cat,train,m0.{kind}\n1.jpg,dog,val,m1.{kind}\n"
            )
        return arguments

    return make


def coco(**changes: object) -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        pictures(folder, "a.jpg", "b.jpg")
        square = [[2, 2, 12, 2, 12, 12, 2, 12]]
        content = {
            "images": [
                {"id": n, "file_name": name, "width": 32, "height": 24} for n, name in enumerate(("a.jpg", "b.jpg"))
            ],
            "annotations": [
                {"id": n, "image_id": n, "category_id": n + 1, "segmentation": square, "iscrowd": 0} for n in range(2)
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        (folder / "instances.json").write_text(json.dumps(content | changes))
        return ["--coco", str(folder / "instances.json")]

    return make


def loose(folder: Path) -> list[str]:
    pictures(folder, "0.jpg", "1.jpg")
    return ["--folders", str(folder)]


def folders(folder: Path) -> list[str]:
    pictures(folder, "photos/cats/0.jpg", "photos/dogs/0.jpg")
    return ["--folders", str(folder / "photos")]


def misnamed(folder: Path) -> list[str]:
    (folder / "masks").mkdir()
    Image.fromarray(half(1)).save(folder / "masks/0.png")
    return [*folders(folder), "--masks", str(folder / "masks")]


def masks_here(folder: Path) -> list[str]:
    (folder / "masks").mkdir()
    os.chdir(folder)
    return [*folders(folder), "--masks", "masks"]


def unused(folder: Path) -> list[str]:
    Image.fromarray(half(255)).save(folder / "s.png")
    given = table("image,labels,saliency\n0.jpg,cat,s.png\n1.jpg,dog,\n")(folder)
    return [*given, "--set", "seeds.background_cue=evidence"]


def heic(folder: Path) -> list[str]:
    arguments = table("image,labels\n0.heic,cat\n1.jpg,dog\n")(folder)
    (folder / "0.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(100))
    return arguments


def half(ink: int) -> np.ndarray:
    mask = np.zeros((24, 32), np.uint8)
    mask[:, 16:] = ink
    return mask


def colours() -> np.ndarray:
    return np.dstack([half(128), half(0), half(0)])


def voc(name: str, split: str = "train") -> Callable[[Path], list[str]]:
    def make(folder: Path) -> list[str]:
        pictures(folder, "JPEGImages/a.jpg", "JPEGImages/b.jpg")
        for image_id, label in (("a", name), ("b", "cat")):
            (folder / "Annotations").mkdir(exist_ok=True)
            xml = f"<annotation><object><name>{label}</name></object></annotation>"
            (folder / f"Annotations/{image_id}.xml").write_text(xml)
        (folder / "ImageSets/Main").mkdir(parents=True)
        (folder / "ImageSets/Main/train.txt").write_text("a\nb\n")
        return ["--voc", str(folder), "--split", split]

    return make


# A flag to give, or what to do where no flag can help
WAY_OUT = re.compile(
    r"--[a-z]|\b([Aa]dd|[Pp]ut|[Gg]ive|[Ww]rite|[Ss]ave|[Cc]orrect|[Dd]ownload|[Rr]ename|Did you mean)\b"
)

GOOD = "image,labels,split\n0.jpg,cat,train\n1.jpg,dog,train\n2.jpg,dog,val\n"


class Mistake(NamedTuple):
    """What was given, the input, and a part of what is printed, as docs/data.md has it."""

    given: str
    make: Callable[[Path], list[str]]
    sentence: str


MISTAKES = [
    Mistake("no source", lambda at: [], "no source of labels. Give one of --folders, --csv, --parquet, --voc, --coco"),
    Mistake("`--images` for a folder per class", lambda at: ["--images", str(at)], "Give a source too: --csv labels.csv, or for a folder per class --folders"),
    Mistake("a folder as `--csv`", lambda at: ["--csv", str(at)], "a folder, not a table. For a folder per class give --folders"),
    Mistake("pictures without folders as `--folders`", loose, "2 images that are not in a folder. --folders needs a folder per class"),
    Mistake("an old Excel workbook (.xls)", table(b"\xd0\xcf\x11\xe0", name="labels.xls"), "an Excel workbook of the old kind, or one with a password; save it in Excel as .xlsx"),
    Mistake("a table in another encoding", table("image,labels\n0.jpg,Käse\n".encode("cp1252")), "If '0.jpg,Käse' reads right, give --encoding cp1252; or save the file as UTF-8"),
    Mistake("a table without a first line of names", table("0.jpg,cat\n1.jpg,dog\n"), "its first line does not have the names of the columns; add a line such as image,labels"),
    Mistake("a misspelt column", table("image,lables\n0.jpg,cat\n"), "column 'lables': unknown. Did you mean 'labels'? Then rename it, or give --label-column lables"),
    Mistake("images in a column of another name", table("ref,labels\n0.jpg,cat\n"), "Say which column names the images: --image-column ref"),
    Mistake("labels in a column of another name", table("image,breed\n0.jpg,cat\n"), "Say which column names the labels, as in --label-column breed"),
    Mistake("columns with 0, 1 and -1", table("image,cat,dog\n0.jpg,1,0\n1.jpg,-1,1\n"), "Say which: --minus-one absent, --minus-one present, or --minus-one skip"),
    Mistake("numbers with a short class list", table("image,labels\n0.jpg,1\n1.jpg,2\n", "--classes", "cat,dog,cow"), "Say which: --first-class 0 or --first-class 1"),
    Mistake("labels separated by commas", table('image,labels\n0.jpg,"cat,dog"\n1.jpg,cat\n2.jpg,dog\n'), "labels are separated by ';' or '|', or give --label-separator ','"),
    Mistake("two spellings of one class", table("image,labels\n0.jpg,sheep\n1.jpg,shep\n2.jpg,cat\n"), "two classes, or one misspelt? 'sheep' 1, 'shep' 1"),
    Mistake("a class called background", table("image,labels\n0.jpg,background\n1.jpg,cat\n"), "give --negative-label background"),
    Mistake("a label that means no class", table("image,labels\n0.jpg,none\n1.jpg,cat\n"), "give --negative-label 'none'"),
    Mistake("a class whose images cannot be read", table("image,labels\n0.jpg,cat\nlost.jpg,dog\n"), "Repair or convert their images and prepare again, or leave it out with --classes cat"),
    Mistake("one class alone", table("image,labels\n0.jpg,crack\n1.jpg,crack\n2.jpg,\n"), "every training image has the label 'crack', so the classifier has nothing to tell it apart from. Add images without it"),
    Mistake("a misspelt class in `--classes`", table(GOOD, "--classes", "cat,dgo"), "--classes: no image has the label 'dgo'. Did you mean 'dog'?"),
    Mistake("one image in two splits", table("image,labels,split\n0.jpg,cat,train\n0.jpg,cat,val\n"), "image '0' is in the splits 'train' and 'val'. Give it one split, or read only one: --split train"),
    Mistake("one id for two images", table("image,labels,id\n0.jpg,cat,7\n1.jpg,dog,7\n"), "Give each image its own id, or leave the ids out"),
    Mistake("a wrong folder of images", table(GOOD, "--images", "/nowhere"), "Check the folder; for tables and COCO --images names it"),
    Mistake("photos of a phone in HEIC", heic, "an HEIC picture, which is not read; save it as JPEG or PNG"),
    Mistake("one image written in two ways", table("image,labels\n0.jpg,cat\n0.JPG,dog\n"), "its name is written in two ways. Write it the same way everywhere"),
    Mistake("one picture in two class folders", folders, "It is under different labels. Give one image all its labels, in a table (--csv)"),
    Mistake("copies of a picture in train and val", table(GOOD), "so figures measured on images outside the training are too good. Keep one file of each"),
    Mistake("web addresses", table("image,labels\nhttps://example.org/0.jpg,cat\n1.jpg,dog\n"), "the path of its image is a web address; download the image and name the file"),
    Mistake("paths of another computer", table("image,labels\nC:\\photos\\0.jpg,cat\n1.jpg,dog\n"), "the path of its image is a Windows path; write it with slashes, relative to the folder of the images (--images)"),
    Mistake("a split named test", table(GOOD + "3.jpg,cat,test\n"), "not used for training: test. To train on it too: '--set data.train_splits=train,test'"),
    Mistake("no split for validation", table("image,labels\n0.jpg,cat\n1.jpg,dog\n"), "To take some images for validation, give --val-fraction 0.2"),
    Mistake("masks of 0 and 255", masks(half(255)), "If it is the object, give --mask-values 255=label"),
    Mistake("masks in colours", masks(colours()), "Its colours: #000000, #800000"),
    Mistake("masks as JPEG", masks(half(255), "jpg"), "mask is a JPEG, which changes its values; save masks as PNG, or prepare with --mask-values"),
    Mistake("masks with other values", masks(half(38)), "If they are classes: --mask-values 38=cat,..."),
    Mistake("masks that are not there", table("image,labels,mask\n0.jpg,cat,m0.png\n1.jpg,dog,m1.png\n"), "Correct their paths, or leave them out"),
    Mistake("a folder of masks that is not there", lambda at: [*folders(at), "--masks", "/nowhere"], "no such folder. Give the folder with the masks, or leave it out"),
    Mistake("masks in the folder where you are", masks_here, "Relative paths are relative to the source's folder"),
    Mistake("masks with other names than the images", misnamed, "A file must have the id of its image as its name, such as cats__0.png; there is 0.png"),
    Mistake("saliency maps that the settings do not use", unused, "1 image has a saliency map, and seeds.background_cue=evidence does not use it. To use it, give --set seeds.background_cue=saliency"),
    Mistake("COCO files that were merged by hand", coco(images=[{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]), "have the same id 1, so their annotations cannot be told apart"),
    Mistake("outlines that are all crowds", coco(annotations=[{"id": n, "image_id": n, "category_id": n + 1, "segmentation": [[2, 2, 12, 2, 12, 12]], "iscrowd": 1} for n in range(2)]), "If they are objects (CVAT writes painted objects in this way), give --crowds-are-objects"),
    Mistake("some of VOC's classes and others", voc("rabbit"), "Give the classes: --classes cat,rabbit"),
    Mistake("a list that is not in VOC's folder", voc("dog", "val"), "no list 'val' in ImageSets; there are train. Name one of these: --split train"),
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.given)
def test_a_usual_mistake_is_told_with_its_reason_and_a_way_out(
    mistake: Mistake, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)  # and back at the end
    folder = tmp_path / "data"
    folder.mkdir()
    try:
        main(["--run", str(tmp_path / "run"), *mistake.make(folder)])
        said = capsys.readouterr().out
    except ValueError as error:
        said = str(error)
        assert "\n" not in said
    assert mistake.sentence in said, said
    line = next(line for line in said.splitlines() if mistake.sentence in line)
    assert WAY_OUT.search(line), f"it names nothing to do: {line}"


def test_the_documentation_lists_these_mistakes_with_these_sentences() -> None:
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", DOC.read_text().split("## The usual mistakes")[1], re.M)[1:]
    plain = {given: sentence.replace("\\|", "|") for given, sentence in rows}
    assert plain == {mistake.given: mistake.sentence for mistake in MISTAKES}
    assert len(MISTAKES) >= 30
