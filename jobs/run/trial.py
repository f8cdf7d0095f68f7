"""Trials: runs with the tiny network. They show whether the data and the machine are right; their masks are poor."""

from jobs.run.config_keys import Config

TINY = "small"  # the backbone of trials

REMEDY = "The tiny network of a trial often does that; for real masks, use docs/examples/own_data.toml."
"""What a message about a poor network says in a trial."""


def is_trial(config: Config) -> bool:
    """Whether a run has the tiny network of a trial."""
    return TINY in (config.classifier.backbone, config.segmenter.backbone)


def one_label_remedy(config: Config) -> str:
    """What to do if a segmentation network gives every pixel the same label."""
    if is_trial(config):
        return REMEDY
    return (
        "Unless this is right, the network has learnt nothing. Look at the seeds in the report; a lower "
        "segmenter.learning_rate or more segmenter.epochs may help."
    )
