"""The contact sheet: what it shows of an image, and where."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from jobs.contact_sheet import main
from jobs.reporting.contact_sheet import COLUMNS, draw_contact_sheet
from jobs.reporting.pictures import GAP, TILE, SheetRow, contact_sheet, heat_tile, image_tile, label_colours, label_tile
from storage.map_store import MapStore


@pytest.fixture
def shown(monkeypatch):
    """What the last sheet was drawn of: its rows and the names in its legend."""
    seen = {}

    def record(columns, rows, colours):
        seen.update(rows=rows, names=list(colours))
        return contact_sheet(columns, rows, colours)

    monkeypatch.setattr("jobs.reporting.contact_sheet.contact_sheet", record)
    return seen


def test_every_mapped_class_of_an_image_has_a_row(finished_maps_run, shown):
    manifest = finished_maps_run.manifest()
    place = draw_contact_sheet(finished_maps_run, num_images=14)
    captions = [row.caption.partition(", ")[0] for row in shown["rows"]]
    entries = manifest.rows(0, 14)
    assert captions == [f"{row.image_id}: {manifest.class_names[label]}" for row in entries for label in row.labels]
    assert len(captions) > 14
    assert all(tile.size == (192, 144) for row in shown["rows"] for tile in row.tiles)  # scenes are 160 x 120
    assert shown["names"] == ["background", *manifest.class_names]
    assert Image.open(io.BytesIO(place.read_bytes())).width == GAP + len(COLUMNS) * (TILE + GAP)


def test_blank_maps_are_explained(finished_maps_run, shown, monkeypatch):
    read = MapStore.read

    def blank_first_class(store, index):
        maps = read(store, index)
        return replace(maps, max=np.where(np.arange(len(maps.max))[:, None, None] == 0, 0, maps.max))

    monkeypatch.setattr(MapStore, "read", blank_first_class)
    draw_contact_sheet(finished_maps_run, num_images=1)
    first, *others = [row.caption for row in shown["rows"]]
    assert first.endswith(": the maps are empty, because no sample found evidence")
    assert not any("blank" in caption for caption in others)


def test_the_truth_has_a_column_only_where_an_image_shown_has_a_mask(drawn_images, map_images, shown):
    run = map_images([replace(image, mask_uri=None) for image in drawn_images[:3]])
    place = draw_contact_sheet(run, num_images=3)
    assert Image.open(io.BytesIO(place.read_bytes())).width == GAP + (len(COLUMNS) - 1) * (TILE + GAP)
    assert shown["names"] == []


def test_a_map_is_stretched_over_its_image_with_aligned_corners():
    tile = image_tile(np.full((30, 60, 3), 128, np.uint8))
    assert tile.size == (TILE, TILE // 2)
    heat = np.asarray(heat_tile(tile, np.array([[1, 0], [0, np.nan]], np.float16)), int)
    hot, cold = (np.asarray(heat_tile(tile, np.full((2, 2), value)), int)[0, 0] for value in (1, 0))
    np.testing.assert_array_equal(heat[[0, 0, -1, -1], [0, -1, 0, -1]], [hot, cold, cold, cold])
    half = np.asarray(heat_tile(tile, np.array([[1, 0], [1, 0]])), int)
    middle = np.asarray(heat_tile(tile, np.full((2, 2), 0.5)), int)[0, 0]
    assert np.abs(half[0, TILE // 2 - 1 : TILE // 2 + 1].mean(axis=0) - middle).max() <= 1


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (7, 5)])
def test_images_of_any_shape_have_tiles(shape):
    tile = image_tile(np.zeros((*shape, 3), np.uint8))
    assert max(tile.size) == TILE and min(tile.size) >= 1
    assert heat_tile(tile, np.eye(3)).size == label_tile(np.zeros(shape, np.uint8), 255, tile.size).size == tile.size


def test_the_legend_grows_with_its_names_and_holds_their_colours():
    row = SheetRow("", [image_tile(np.full((8, 8, 3), 255, np.uint8))])
    colours = {f"a long name {number}": label_colours(np.array(number), 255) for number in range(20)}
    few, many = (contact_sheet(["image"], [row], dict(list(colours.items())[:count])) for count in (1, 20))
    assert few.width == many.width and few.height < many.height
    found = {tuple(colour) for colour in np.asarray(many).reshape(-1, 3).tolist()}
    assert {tuple(colour.tolist()) for colour in colours.values()} <= found


def test_long_class_lists_keep_the_ignored_label_apart():
    ignored, last = label_colours(np.array([65535, 300], np.uint16), 65535)
    assert not np.array_equal(ignored, last)
    np.testing.assert_array_equal(ignored, label_colours(np.array(255, np.uint8), 255))


def test_a_sheet_without_maps_is_refused(trained_run):
    with pytest.raises(ValueError, match=r"no maps yet\. Run 'python jobs/generate_maps\.py"):
        draw_contact_sheet(trained_run, 8)
    with pytest.raises(ValueError, match="--images 0: give the number of images, 1 or more"):
        main(["--run", trained_run.uri, "--images", "0"])
