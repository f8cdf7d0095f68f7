"""How much work a step has: which images a unit step computes, and which features a training keeps."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.maps.cells_job import is_learned
from jobs.run.config_keys import Config
from jobs.run.steps import StepRow
from jobs.training import classifier_job, segmenter_job
from jobs.training.kept_features import bytes_of
from storage.manifest import Manifest

READING = ("maps", "refined", "pseudo_labels")
"""The steps that read all images, also those without classes, of which they compute nothing."""


def computed_shares(row: StepRow, manifest: Manifest, config: Config) -> NDArray[np.float64]:
    """For each row of the manifest, the probability that the step computes it, float64 (num_images,) in [0, 1].

    `cells` computes at most `cells.max_images` of the labelled or negative training images, chosen at random. Images
    without classes have no maps, and nothing is made from them.
    """
    if row.name == "cells":
        learned = np.array([is_learned(entry, config) for entry in manifest.iter_rows()], float)
        return learned * min(1.0, config.cells.max_images / max(1.0, learned.sum()))
    predicts = config.maps.classes == "predicted"
    shares = [np.zeros(0)]
    for table in manifest.iter_tables(["labels", "negative", "split", "problem"]):
        is_computed = table["problem"].is_null()
        if row.is_of_splits:
            is_computed = pc.and_(is_computed, pc.is_in(table["split"], pa.array(config.predicted_splits, pa.string())))
        elif row.name in READING:
            has_label = pc.greater(pc.list_value_length(table["labels"]), 0)
            is_mapped = pc.or_(has_label, pc.invert(table["negative"])) if predicts else has_label
            is_computed = pc.and_(is_computed, is_mapped)
        shares.append(is_computed.to_numpy(zero_copy_only=False).astype(float))
    return np.concatenate(shares)


def kept_feature_bytes(row: StepRow, manifest: Manifest, config: Config) -> int:
    """The bytes of an image's features if a training keeps those of its frozen backbone; else 0."""
    frozen_shape = classifier_job.frozen_shape if row.name == "classifier" else segmenter_job.frozen_shape
    shape = frozen_shape(config, manifest)
    return bytes_of(shape) if shape else 0
