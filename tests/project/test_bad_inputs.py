"""A corpus of odd and hostile inputs: each is handled, skipped with a reason, or refused in one sentence."""

import io
import json
import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from ficklenet.classifier import ClassifierSpec, FickleNet, pack_classifier, unpack_classifier
from jobs.run.config import resolve_config
from storage.image_table import read_image_table
from storage.images import image_size, read_image, read_mask, read_saliency
from storage.label_file import read_label_file
from storage.location import Location
from storage.manifest import Manifest, write_manifest
from storage.names import safe_name
from storage.sources import SourceImage, manifest_rows
from storage.steps import Receipt, Step
from storage.voc import read_voc

SQUARE = np.full((6, 8, 3), (200, 40, 10), np.uint8)


class Executes:
    """A pickle of this would call `print`."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return print, ("code was run",)


def saved(folder: Path, image: Image.Image, kind: str, **options: object) -> str:
    image.save(folder / "file", kind, **options)
    return str(folder / "file")


def held(folder: Path, data: bytes) -> str:
    (folder / "file").write_bytes(data)
    return str(folder / "file")


def png_bytes(width: int = 8, height: int = 6) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.resize(SQUARE, (height, width, 3))).save(buffer, "PNG")
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises what it does not hold."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + struct.pack(">I", zlib.crc32(header)) + png_bytes()[33:]


def shape(uri: str) -> str:
    """How an image that can be used arrives."""
    image = read_image(uri)
    return f"{image.shape} {image.dtype} {image_size(uri)}"


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def problem(image_id: str = "a", labels: tuple[str, ...] = (), earlier: str = "b") -> str | None:
    """What preparation says of an image with that id or those labels, the classes being cat and cow."""
    images = [SourceImage(earlier, "/x"), SourceImage(image_id, "/y", labels)]
    return list(manifest_rows(images, ["cat", "cow"]))[1].problem


def table(folder: Path, text: str) -> object:
    images = read_image_table(Location(held(folder, text.encode())), Location(str(folder))).images
    return images[0].problem or images


def table_of_bytes(folder: Path) -> object:
    return read_image_table(Location(held(folder, b"image,labels\n\xff\xfe,\x00\n")), Location(str(folder))).images


def held_step(folder: Path, content: object) -> object:
    (folder / "step.json").write_text(json.dumps(content))
    return Step(Location(str(folder))).fingerprint()


def manifest(folder: Path, data: bytes) -> object:
    return Manifest.open(Location(held(folder, data)))


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.table({"a": [1]}), folder / "plain")
    return (folder / "plain").read_bytes()


def labels(folder: Path, content: object) -> object:
    np.save(folder / "labels.npy", np.array(content, dtype=object), allow_pickle=True)
    return read_label_file(Location(str(folder / "labels.npy")))


def annotation(folder: Path, text: str) -> object:
    for name in ("ImageSets/Segmentation", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (folder / "Annotations/a.xml").write_text(text)
    found = list(read_voc(Location(str(folder)), ["train"], ["cat"]).images)
    return found[0].problem or found


ENTITIES = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><annotation>&b;</annotation>'


def config(folder: Path, *assignments: str, text: str = "") -> object:
    return resolve_config({}, held(folder, text.encode()), assignments)


def archive(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def classifier(**changes: object) -> bytes:
    spec = ClassifierSpec(backbone="small", class_names=("cat",), kernel_size=3, drop_rate=0.5, input_size=65)
    content = torch.load(io.BytesIO(pack_classifier(FickleNet(spec))), weights_only=True)
    return archive(content | changes)


def receipt(folder: Path, body: bytes) -> object:
    step = Step(Location(str(folder)))
    (step.location / "done/000000.json").write_bytes(body)
    return f"{len(step.receipts())} receipts"


class Case(NamedTuple):
    """An input, what is done with it in an empty folder, and a pattern of what must come of it."""

    name: str
    act: Callable[[Path], object]
    expected: str


UPRIGHT = r"^\(6, 8, 3\) uint8 \(6, 8\)$"
CASES = [
    # images that are odd but good
    Case("CMYK", lambda at: shape(saved(at, Image.fromarray(SQUARE).convert("CMYK"), "JPEG")), UPRIGHT),
    Case("16-bit PNG", lambda at: shape(saved(at, Image.fromarray(np.full((6, 8), 999, np.uint16)), "PNG")), UPRIGHT),
    Case("palette PNG", lambda at: shape(saved(at, Image.fromarray(SQUARE).convert("P"), "PNG")), UPRIGHT),
    Case("transparent", lambda at: shape(saved(at, Image.new("RGBA", (8, 6)), "PNG")), UPRIGHT),
    Case("1-bit", lambda at: shape(saved(at, Image.new("1", (8, 6)), "PNG")), UPRIGHT),
    Case("animated", lambda at: shape(saved(at, Image.new("P", (8, 6)), "GIF")), UPRIGHT),
    Case("1 x 1", lambda at: shape(saved(at, Image.new("RGB", (1, 1)), "PNG")), r"^\(1, 1, 3\) uint8 \(1, 1\)$"),
    Case(
        "EXIF-rotated",
        lambda at: shape(saved(at, Image.fromarray(SQUARE), "JPEG", exif=sideways())),
        r"^\(8, 6, 3\) uint8 \(8, 6\)$",
    ),
    # images that are not
    Case("empty file", lambda at: read_image(held(at, b"")), "^empty file$"),
    Case("no image", lambda at: read_image(held(at, b"GIF89a" + b"\0" * 9)), "damaged|^not an image"),
    Case("HTML page", lambda at: read_image(held(at, b"<html>404</html>")), "^a web page, not a picture"),
    Case("PDF", lambda at: read_image(held(at, b"%PDF-1.7 ...")), "^a PDF file, which is not read"),
    Case("truncated", lambda at: read_image(held(at, png_bytes(300, 300)[:-60])), "^damaged or truncated PNG file$"),
    Case("bomb by its header", lambda at: read_image(held(at, bomb(60_000, 60_000))), "^too large"),
    Case("large but possible", lambda at: read_image(held(at, bomb(9_000, 9_000))), r"^too large: 9000 x 9000"),
    Case("floating point", lambda at: read_image(saved(at, Image.new("F", (8, 6)), "TIFF")), "^floating-point pixels"),
    Case("folder", lambda at: read_image(str(at)), "^a folder, not a file$"),
    Case("missing", lambda at: read_image(str(at / "absent")), "^missing: no such file$"),
    Case("other scheme", lambda at: read_image("http://host/a.jpg"), "^its address is neither a path nor s3://"),
    # masks and saliency maps
    Case("mask in colours", lambda at: read_mask(held(at, png_bytes()), [1]), "^mask has RGB pixels"),
    Case("saliency map that is text", lambda at: read_saliency(held(at, b"0.5 0.5")), "^not an image"),
    Case("saliency map bomb", lambda at: read_saliency(held(at, bomb(60_000, 60_000))), "^too large"),
    # ids and labels
    Case("id with ../", lambda at: problem("../../etc/passwd"), "^its id is not a plain name"),
    Case("absolute id", lambda at: problem("/etc/passwd"), "^its id is not a plain name"),
    Case("id with a NUL", lambda at: problem("a\0b"), "^its id is not a plain name"),
    Case("endless id", lambda at: problem("x" * 5000), "^its id is not a plain name"),
    Case("hidden id", lambda at: problem(".."), "^its id is not a plain name"),
    Case("duplicate id", lambda at: problem("b"), "^its id is already taken"),
    Case("foreign label", lambda at: problem("a", ("zebra",)), "^label 'zebra' is not in the class list$"),
    Case("id with HTML as a file name", lambda at: safe_name('<img src=x onerror="1">'), r"^%3Cimg[\w%~.-]+$"),
    Case("key that leaves the run", lambda at: Location("s3://b/run") / "../other", "is not a name in s3://b/run"),
    Case("run with ..", lambda at: Location.parse("s3://b/run/../other"), r"no '\.\.'"),
    # tables and label files
    Case("table without labels", lambda at: table(at, "image\na.jpg\n"), "no column 'labels'"),
    Case("misspelt column", lambda at: table(at, "image,lables\n"), "Did you mean 'labels'"),
    Case("binary table", table_of_bytes, "not CSV text"),
    Case("path out of the folder", lambda at: table(at, "image,labels\n../../x.jpg,cat\n"), "leads out of the folder"),
    Case("ragged row", lambda at: table(at, "image,labels\na.jpg,cat,dog\n"), "has 3 fields, but the first line has 2"),
    Case("pickle that calls", lambda at: labels(at, {"a": Executes()}), "only arrays, numbers and text are read"),
    Case("bare pickle", lambda at: read_label_file(Location(held(at, pickle.dumps(Executes())))), "not a dictionary"),
    Case("rows that differ", lambda at: labels(at, {"a": np.ones(2), "b": np.ones(3)}), "label rows differ in length"),
    Case("annotation with entities", lambda at: annotation(at, ENTITIES), "it declares a document type"),
    Case("annotation that is no XML", lambda at: annotation(at, "<annotation>"), "not XML"),
    # manifests
    Case("manifest of text", lambda at: manifest(at, b"image_id,uri"), "not a Parquet file"),
    Case("another Parquet file", lambda at: manifest(at, parquet(at)), "a Parquet file, but no manifest"),
    Case("class twice", lambda at: write_manifest(Location(str(at / "m")), [], ["a", "a"]), "names that differ"),
    # configurations
    Case("unknown key", lambda at: config(at, "maps.num_sample=3"), r"Did you mean maps\.num_samples\?"),
    Case("wrong value", lambda at: config(at, "maps.num_samples=none"), "maps.num_samples: given 'none', allowed"),
    Case("no TOML", lambda at: config(at, text="[maps\nx"), "not a TOML file"),
    Case("even kernel", lambda at: config(at, "classifier.kernel_size=8"), "given 8, allowed: odd numbers"),
    # checkpoints
    Case("pickled checkpoint", lambda at: unpack_classifier(pickle.dumps(Executes(), 2)), "not a classifier"),
    Case("checkpoint that calls", lambda at: unpack_classifier(classifier(spec=Executes())), "not a classifier"),
    Case("state of another", lambda at: unpack_classifier(classifier(state={})), "not a classifier of this project"),
    Case("half a specification", lambda at: unpack_classifier(classifier(spec={"kernel_size": 9})), "not a classifier"),
    # receipts and step records
    Case("torn receipt", lambda at: receipt(at, b'{"unit": 0, "sta'), "^0 receipts$"),
    Case("receipt of lists", lambda at: receipt(at, b"[" * 100_000), "^0 receipts$"),
    Case("receipt of another", lambda at: receipt(at, Receipt(5, 0, 4, 1.0, 1.0).to_json()), "^0 receipts$"),
    Case("step that is none", lambda at: held_step(at, [1, 2]), "cannot be read as a step's record"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_odd_input_is_handled_or_refused_in_one_sentence(case: Case, tmp_path: Path, capsys) -> None:
    try:
        outcome = str(case.act(tmp_path))
    except (ValueError, OSError) as error:  # what run_main turns into one sentence; BadImage becomes a skipped image
        outcome = str(error)
    assert "\n" not in outcome
    assert re.search(case.expected, outcome), outcome
    assert "code was run" not in capsys.readouterr().out


def test_the_corpus_is_large_enough() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30
