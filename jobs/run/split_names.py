"""The names of splits in the configuration: which are usual, and which no image has.

Configurations are used for several data sets, so they may name a usual split that one of them does not have:
``val_splits = ["val"]`` and ``predictions.splits = ["train", "val"]`` are right for a table without a validation split
too. Any other name that no image has is a mistake.
"""

import difflib
import re
from collections.abc import Collection, Sequence

from jobs.run.config_keys import Config

VALIDATION = re.compile(r"(val|valid|validation)([\W_]?\d+)?", re.IGNORECASE)  # val2017 too
TEST = re.compile(r"(test|testing|test[\W_]?dev)([\W_]?\d+)?", re.IGNORECASE)
TRAINING = re.compile(r"(train|training)([\W_]?\d+)?", re.IGNORECASE)

_DATA = ("data.train_splits", "data.val_splits")
_STRONG, _PREDICTED = "segmenter.strong_splits", "predictions.splits"
_KEYS_OF_STEPS = {
    "classifier": _DATA,
    "cells": _DATA,
    "segmenter": (*_DATA, _STRONG),
    "retrained": (*_DATA, _STRONG),
    "predictions": (_PREDICTED,),
}


def require_known_splits(config: Config, splits: Sequence[str], steps: Collection[str] = tuple(_KEYS_OF_STEPS)) -> None:
    """Refuses a key that names a split which no image has, unless the name is usual.

    Args:
        splits: the splits of the manifest; "" for images without one.
        steps: only the keys that these steps read are checked.

    Raises:
        ValueError: there is such a name; the message has the splits of the manifest and the most similar one.
    """
    for key in dict.fromkeys(key for step in steps for key in _KEYS_OF_STEPS.get(step, ())):
        section, _, name = key.partition(".")
        for split in getattr(getattr(config, section), name):
            if split and split not in splits and not is_usual(split):
                known = ", ".join(each or "images without a split" for each in sorted(splits))
                raise ValueError(
                    f"{key}: no image is in the split {split!r}; the manifest has {known}.{nearest(split, splits)}"
                )


def nearest(split: str, splits: Collection[str]) -> str:
    """' Did you mean ...?' with the most similar split; '' if none is similar."""
    near = difflib.get_close_matches(split, [*filter(None, splits)], n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def is_usual(split: str) -> bool:
    """Whether it is a usual name of a split for training, validation or test."""
    return any(pattern.fullmatch(split) for pattern in (TRAINING, VALIDATION, TEST))
