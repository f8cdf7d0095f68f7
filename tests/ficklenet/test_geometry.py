"""Where the cells lie: sizes, pixels, resizing, in both frames."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ficklenet.geometry import GridGeometry

CORNERS, PATCHES = GridGeometry(8), GridGeometry(16, "centres")


def test_paper_and_patch_inputs_have_the_known_grids():
    assert (CORNERS.grid_size(321), CORNERS.grid_size(129)) == (41, 17)
    assert (PATCHES.grid_size(224), PATCHES.grid_size(320)) == (14, 20)


@given(st.sampled_from([4, 7, 8, 14, 16, 32]), st.sampled_from(["corners", "centres"]), st.integers(1, 3000))
def test_nearest_input_size_is_filled_by_its_cells(stride, frame, pixels):
    geometry = GridGeometry(stride, frame)
    size = geometry.nearest_input_size(pixels)
    geometry.require_input_size(size)
    assert geometry.grid_size(size) >= 2
    assert size == stride * geometry.grid_size(size) + (0 if frame == "centres" else 1 - stride)
    assert abs(size - pixels) <= stride / 2 or geometry.grid_size(size) == 2


def test_sizes_that_the_cells_do_not_fill_are_refused_with_the_rule_and_the_nearest():
    with pytest.raises(ValueError, match=r"^images.input_size: 320 given; .*every 8th.*Give 8 g \+ 1, such as 321\.$"):
        CORNERS.require_input_size(320, "images.input_size")
    with pytest.raises(ValueError, match=r"321 given; .*patches of 16 x 16.*a multiple of 16, such as 320\.$"):
        PATCHES.require_input_size(321)
    with pytest.raises(ValueError, match="such as 9"):
        CORNERS.require_input_size(1)


@pytest.mark.parametrize(
    ("geometry", "size", "places"), [(CORNERS, 33, [0, 8, 16, 24, 32]), (PATCHES, 48, [8, 24, 40])]
)
def test_pixels_at_cells_are_those_of_the_frame(geometry, size, places):
    images = torch.arange(size).expand(1, 1, size, size)
    assert geometry.at_cells(images)[0, 0, 0].tolist() == places
    assert geometry.at_cells(images).shape[2] == geometry.grid_size(size)


@pytest.mark.parametrize(("geometry", "size"), [(CORNERS, 33), (PATCHES, 64), (GridGeometry(14, "centres"), 70)])
def test_an_enlarged_ramp_has_each_cells_value_at_the_cells_place(geometry, size):
    cells = geometry.grid_size(size)
    first = 0 if geometry.frame == "corners" else (geometry.stride - 1) / 2
    place = first + geometry.stride * torch.arange(cells, dtype=torch.float64)  # of each cell, in pixels
    ramp = geometry.resize_maps(place.expand(cells, cells), (size, size))[0]
    inside = torch.arange(int(place[0] + 1), int(place[-1]) + 1)
    torch.testing.assert_close(ramp[inside], inside.double())


def test_the_frames_differ_by_half_a_cell_at_the_border():
    cells = torch.tensor([[0.0, 1.0]]).expand(2, 2)
    corners, patches = (geometry.resize_maps(cells, (32, 32))[0] for geometry in (GridGeometry(31), PATCHES))
    assert (corners > 0).sum() == 31 and (patches > 0).sum() == 24  # beyond the last centre nothing rises
    assert (patches == 1).sum() == 8


def test_labels_of_patches_cover_their_patches_and_come_back():
    labels = np.arange(12).reshape(3, 4)
    enlarged = PATCHES.resize_labels(labels, (48, 64))
    np.testing.assert_array_equal(enlarged, labels.repeat(16, axis=0).repeat(16, axis=1))
    np.testing.assert_array_equal(PATCHES.resize_labels(enlarged, (3, 4)), labels)


def test_labels_in_the_corner_frame_spread_around_their_pixels():
    enlarged = CORNERS.resize_labels(np.arange(3)[None].repeat(3, axis=0), (17, 17))
    assert enlarged[0, [0, 3, 5, 8, 11, 13, 16]].tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_windows_and_dilations_span_about_as_many_pixels_at_every_stride():
    assert [GridGeometry(stride).default_kernel_size for stride in (8, 14, 16, 32)] == [9, 5, 5, 3]
    assert GridGeometry(8).dilations_like((6, 12, 18, 24)) == (6, 12, 18, 24)
    assert GridGeometry(16).dilations_like((12,)) == (6,)
    assert GridGeometry(32).dilations_like((1, 2, 12)) == (1, 3)
