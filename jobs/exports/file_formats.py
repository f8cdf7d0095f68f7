"""The field's file formats for labels and maps, as bytes and plain data: IRN's npy, COCO's records."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

CAM_STRIDE = 4  # of IRN's small maps


def encode_cam_npy(maps: np.ndarray, classes: np.ndarray) -> bytes:
    """What IRN (Ahn et al., CVPR 2019) keeps per image: a pickled dictionary of keys, cam and high_res.

    Args:
        maps: float (S, H, W) in [0, 1] at image size: `high_res`. Every fourth pixel is `cam`, a tensor, as IRN's
            scripts expect.
        classes: (S,) 0-based classes of the data set's own masks: `keys`.
    """
    high_res = maps.astype(np.float32)
    cam = torch.from_numpy(high_res[:, ::CAM_STRIDE, ::CAM_STRIDE].copy())
    buffer = io.BytesIO()
    cams = np.array({"keys": classes.astype(np.int64), "cam": cam, "high_res": high_res}, dtype=object)
    np.save(buffer, cams, allow_pickle=True)
    return buffer.getvalue()


def coco_image(number: int, file_name: str, size: Sequence[int]) -> dict[str, Any]:
    """COCO's record of an image of (height, width)."""
    return {"id": number, "file_name": file_name, "height": size[0], "width": size[1]}


def coco_annotations(image_number: int, labels: np.ndarray, class_values: Sequence[int]) -> list[dict[str, Any]]:
    """COCO's records of the classes in an image's labels (H, W), one each, run-length encoded; without ids.

    COCO knows no ignored pixels: they are in no annotation, as background is.

    Args:
        class_values: the category id of class 0, 1, ...
    """
    annotations = []
    for number, value in enumerate(class_values):
        region = np.asfortranarray(labels == number + 1, dtype=np.uint8)
        if region.any():
            runs = coco_mask.encode(region)
            annotations.append(
                {
                    "image_id": image_number,
                    "category_id": value,
                    "segmentation": {"size": list(runs["size"]), "counts": runs["counts"].decode("ascii")},
                    "area": int(coco_mask.area(runs)),
                    "bbox": coco_mask.toBbox(runs).tolist(),
                    "iscrowd": 0,
                }
            )
    return annotations
