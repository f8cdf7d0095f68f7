"""Masks that somebody edits inside a run: they differ from the run's own masks, and no repair deletes them."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.connect import connect
from jobs import export_labels, import_masks, verify
from jobs.cli.launch import launch_step
from jobs.run.directory import Run, open_run
from storage.errors import Damaged
from storage.images import read_mask
from storage.label_folder import encode_label_png
from storage.manifest import Manifest

EDITED = "scene_0012"


def edit(run: Run, step: str, image_id: str = EDITED) -> Path:
    """Draws into a mask in its place, as an image editor does."""
    place = Path(run.data(step).uri, "labels", f"{image_id}.png")
    pixels = np.array(Image.open(place))
    pixels[5:25, 5:35] = 3
    place.write_bytes(encode_label_png(pixels))
    return place


def imported(run: Run) -> dict[str, np.ndarray]:
    Manifest.forget()
    manifest = open_run(run.uri).manifest()
    rows = [row for row in manifest.iter_rows() if row.mask_uri and "/corrected/" in row.mask_uri]
    return {row.image_id: read_mask(row.mask_uri, manifest.class_values) for row in rows}


def test_a_mask_that_was_edited_in_its_place_is_a_correction(predicted_run, capsys):
    place = edit(predicted_run, "predictions")
    drawn = np.array(Image.open(place))
    import_masks.main(["--run", predicted_run.uri, "--masks", str(place.parent)])
    found = imported(predicted_run)
    assert list(found) == [EDITED]
    np.testing.assert_array_equal(found[EDITED], drawn)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_who_reads_an_edited_mask_says_to_copy_it_before_the_repair(predicted_run, tmp_path, mode):
    place = edit(predicted_run, "predictions")
    Image.open(place).convert(mode).save(place)
    with pytest.raises(Damaged, match=r"first copy it to a folder outside the run, for import_masks\.py\. Run 'python"):
        export_labels.main(["--run", predicted_run.uri, "--format", "coco", "--out", str(tmp_path / "out")])
    place.unlink()
    with pytest.raises(Damaged, match=r"\(the file is missing\)\. Run 'python"):
        export_labels.main(["--run", predicted_run.uri, "--format", "coco", "--out", str(tmp_path / "out")])


def test_a_repair_copies_edited_masks_and_prints_the_command_that_imports_them(predicted_run, capsys):
    place = Path(predicted_run.uri, "predictions", "labels", f"{EDITED}.png")
    whole = place.read_bytes()
    edit(predicted_run, "predictions")
    drawn = place.read_bytes()
    with pytest.raises(ValueError, match="verify: the run is damaged"):
        verify.main(["--run", predicted_run.uri])
    assert "masks that somebody edited here are copied to <run>/edited by --repair" in capsys.readouterr().out
    verify.main(["--run", predicted_run.uri, "--repair"])
    text = capsys.readouterr().out
    assert "verify: predictions: 1 damaged mask can be read, so somebody may have edited it. It was copied to" in text
    assert place.read_bytes() == whole
    (copy,) = Path(predicted_run.uri, "edited", "predictions").glob("*/*.png")
    assert copy.read_bytes() == drawn
    command = shlex.split(re.search(r"To bring it in: '(.*)'\.", text)[1])
    import_masks.main(command[2:])
    assert list(imported(predicted_run)) == [EDITED]

    edit(predicted_run, "predictions", "scene_0013")  # a second drawing does not replace the first
    place.write_bytes(whole[:-20])  # and a damaged file is no drawing
    verify.main(["--run", predicted_run.uri, "--repair"])
    assert len(list(Path(predicted_run.uri, "edited", "predictions").glob("*/*.png"))) == 2 and copy.exists()
    capsys.readouterr()
    verify.main(["--run", predicted_run.uri])
    assert "verify: predictions: 1 finished unit checked, sound." in capsys.readouterr().out


def test_copies_have_the_class_values_of_the_data_set(map_images, drawn_images, capsys):
    run = map_images(drawn_images[:2], class_values=(2, 4, 5, 7, 9))
    with connect("in-process") as connection:
        launch_step(run, connection, "pseudo_labels")
    drawn = np.array(Image.open(edit(run, "pseudo_labels", drawn_images[0].image_id)))
    with pytest.raises(ValueError, match=r"have the run's class numbers, not the data set's values\. .* --repair'"):
        import_masks.main(["--run", run.uri, "--masks", f"{run.uri}/pseudo_labels/labels"])
    verify.main(["--run", run.uri, "--repair"])
    command = shlex.split(re.search(r"To bring it in: '(.*)'\.", capsys.readouterr().out)[1])
    import_masks.main(command[2:])
    np.testing.assert_array_equal(imported(run)[drawn_images[0].image_id], drawn)
