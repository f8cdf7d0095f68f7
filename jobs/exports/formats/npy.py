"""IRN's `<id>.npy`: the maximum maps of an image, in the format that many scripts read. It has maps, not labels."""

import io

import numpy as np
import torch

CAM_STRIDE = 4  # of IRN's small maps


def encode_cam_npy(maps: np.ndarray, classes: np.ndarray) -> bytes:
    """The file of IRN (Ahn et al., CVPR 2019) for one image: a pickled dictionary of keys, cam and high_res.

    Args:
        maps: float (S, H, W) in [0, 1] at image size, for `high_res`. `cam` is a tensor of every fourth pixel, as
            IRN's scripts expect.
        classes: (S,) numbers of the classes from 0, for `keys`.
    """
    high_res = maps.astype(np.float32)
    cam = torch.from_numpy(high_res[:, ::CAM_STRIDE, ::CAM_STRIDE].copy())
    buffer = io.BytesIO()
    cams = np.array({"keys": classes.astype(np.int64), "cam": cam, "high_res": high_res}, dtype=object)
    np.save(buffer, cams, allow_pickle=True)
    return buffer.getvalue()
