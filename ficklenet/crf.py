"""The fully connected CRF (Kraehenbuehl and Koltun, NIPS 2011), which moves label borders to image edges; on CPU.

pydensecrf computes it. The parameters are those of DeepLab and DSRG: one set for image size, and one for map size with
distances of 1/12 (Huang et al., CVPR 2018).
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ficklenet.arguments import require_array

LEAST_PROBABILITY = 1e-5  # limits the logarithm in the unary term

Energy = Literal["log", "linear"]
"""The unary energy of probabilities P: -log P as in the literature, or -P as in DSRG's released code."""


@dataclass(frozen=True)
class CrfParameters:
    """The unary energy, and the weights and ranges of the two pairwise terms.

    Attributes:
        bilateral_distance, gaussian_distance: standard deviations in pixels (or cells) of the given image.
        bilateral_colour: standard deviation in units of 8-bit colour.
    """

    bilateral_distance: float
    gaussian_distance: float
    bilateral_weight: float = 10.0
    bilateral_colour: float = 13.0
    gaussian_weight: float = 3.0
    num_iterations: int = 10
    energy: Energy = "log"


AT_IMAGE_SIZE = CrfParameters(bilateral_distance=80.0, gaussian_distance=3.0)
AT_MAP_SIZE = CrfParameters(bilateral_distance=80.0 / 12, gaussian_distance=3.0 / 12)
LIGHT_AT_MAP_SIZE = CrfParameters(bilateral_distance=10.0, gaussian_distance=3.0 / 8, bilateral_weight=4.0)
"""Image size's distances over 8, and a lighter pull: for probabilities that were spread before (docs/method.md)."""


def refine(
    probabilities_LHW: NDArray[np.floating], image_HWC: NDArray[np.uint8], parameters: CrfParameters = AT_IMAGE_SIZE
) -> NDArray[np.float32]:
    """The marginals of the CRF after mean-field inference: float32 (L, H, W), which sum to 1 over the labels.

    Args:
        probabilities_LHW: the probabilities of the labels, in [0, 1], which sum to 1.
        image_HWC: uint8 RGB of the same height and width.
        parameters: by default those for image size.

    Raises:
        ValueError: the sizes differ, the image is not uint8, the probabilities are not in [0, 1], or pydensecrf is not
            installed.
    """
    densecrf = require_pydensecrf()
    require_array(probabilities_LHW, "floats", ("L", "H", "W"), "CRF", "probabilities_LHW", ", in [0, 1]")
    if probabilities_LHW.min() < -1e-3 or probabilities_LHW.max() > 1 + 1e-3:  # takes no time beside the CRF
        raise ValueError(
            f"CRF: given scores from {probabilities_LHW.min():.3g} to {probabilities_LHW.max():.3g}, allowed: "
            "probabilities, which are in [0, 1] and sum to 1 over the labels."
        )
    num_labels, height, width = probabilities_LHW.shape
    text = ", RGB, of the same height and width as the probabilities"
    require_array(image_HWC, "uint8", (height, width, 3), "CRF", "image_HWC", text)
    field = densecrf.DenseCRF2D(width, height, num_labels)
    is_log = parameters.energy == "log"
    evidence = np.log(np.clip(probabilities_LHW, LEAST_PROBABILITY, 1.0)) if is_log else probabilities_LHW
    field.setUnaryEnergy(np.ascontiguousarray(-evidence, np.float32).reshape(num_labels, -1))
    field.addPairwiseGaussian(sxy=parameters.gaussian_distance, compat=parameters.gaussian_weight)
    field.addPairwiseBilateral(
        sxy=parameters.bilateral_distance,
        srgb=parameters.bilateral_colour,
        rgbim=np.array(image_HWC, order="C"),  # a copy: pydensecrf takes only writable, contiguous images
        compat=parameters.bilateral_weight,
    )
    return np.array(field.inference(parameters.num_iterations), np.float32).reshape(num_labels, height, width)


def require_pydensecrf() -> ModuleType:
    """The module that `refine` uses; call this before a long job.

    Raises:
        ValueError: pydensecrf is not installed.
    """
    try:
        from pydensecrf import densecrf
    except ImportError:
        raise ValueError("the dense CRF needs pydensecrf; install it with 'pip install pydensecrf2'.") from None
    return densecrf
