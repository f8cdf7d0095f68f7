"""The settings that change what `localize`, `predict`, `image` and `read` of a trained run return.

All other settings belong to results that are stored, or to networks that are trained. Another value would have no
effect here, so it is refused.
"""

from jobs.run.config_keys import Config, config_keys, value_of
from storage.tree import words

ACTING = (
    "seed",
    *(f"images.{key}" for key in ("max_pixels", "max_bytes", "max_scans")),
    *(f"maps.{key}" for key in ("num_samples", "drop_rate", "normalization", "percentile", "batch_size", "precision")),
    *(f"predictions.{key}" for key in ("network", "scales", "mirror", "refine", "max_side", "precision")),
)


def require_acting(recorded: Config, asked: Config) -> None:
    """Refuses a configuration that differs from the recorded one in a setting without effect.

    Raises:
        ValueError: see above.
    """
    for key in config_keys():
        given = value_of(asked, key)
        if key in ACTING or given == value_of(recorded, key):
            continue
        if key.endswith(".device"):
            raise ValueError(f"settings: {key} has no effect here. Give open_trained(path, device={given!r}).")
        raise ValueError(
            f"settings: {key} has no effect here, because trained networks and stored results stay as they are. "
            f"Allowed: {words(ACTING)}. To see the effect of {key}, run its step again in a copy of the run."
        )
