"""Views of one image come back to one frame."""

import pytest
import torch

from ficklenet.map_fusion import View, fuse


def test_a_mirrored_view_comes_back_the_right_way_round():
    maps = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fuse([View(maps), View(maps.flip(-1), is_mirrored=True)], (5, 5)), maps)


def test_views_of_other_scales_are_averaged_corner_on_corner():
    ramp = torch.linspace(0, 1, 3).expand(1, 3, 3)
    fine = torch.linspace(0, 1, 9).expand(1, 9, 9)
    torch.testing.assert_close(fuse([View(ramp), View(fine)], (5, 5)), torch.linspace(0, 1, 5).expand(1, 5, 5))


def test_every_view_counts_alike():
    fused = fuse([View(torch.zeros(1, 3, 3)), View(torch.ones(1, 3, 3)), View(torch.ones(1, 5, 5))], (3, 3))
    torch.testing.assert_close(fused, torch.full((1, 3, 3), 2 / 3))


def test_no_view_is_refused():
    with pytest.raises(ValueError, match="no view"):
        fuse([], (3, 3))
