"""One configuration per run: the recorded one, then a TOML file, then `--set section.key=value` over it.

It is kept in `run.json`. A launch records its configuration once the step has accepted it. Unknown keys are refused.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.run.config_keys import USUAL_BACKBONES, Config
from jobs.run.config_sentences import refusal


def resolve_config(recorded: dict[str, Any], config_file: str | None, assignments: Sequence[str]) -> Config:
    """The configuration of a launch: the recorded one, changed by a TOML file, then by `a.b=c` assignments.

    Args:
        recorded: the configuration in `run.json`, {} for a new run.
        config_file: path of a TOML file, or None.
        assignments: "section.key=value"; the value is read as TOML, else taken as text.

    Raises:
        ValueError: one sentence: what was given, what is allowed.
    """
    values = recorded
    if config_file is not None:
        values = _merged(values, _read_toml(config_file))
    for assignment in assignments:
        values = _merged(values, _parse_assignment(assignment))
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(refusal(error)) from None
    if config.classifier.kernel_size is not None and config.classifier.kernel_size % 2 == 0:
        raise ValueError(f"classifier.kernel_size: given {config.classifier.kernel_size}, allowed: odd numbers.")
    for name, section in (("classifier", config.classifier), ("segmenter", config.segmenter)):
        if section.frozen_stages and section.weights == "none":
            raise ValueError(
                f"{name}.frozen_stages: given {section.frozen_stages} with {name}.weights=none, "
                "which would leave random weights as they are; give 0, or weights."
            )
    if config.segmenter.weights == "classifier" and config.segmenter.backbone != config.classifier.backbone:
        raise ValueError(
            f"segmenter.weights: given 'classifier', allowed: where both have one backbone, but segmenter.backbone is "
            f"{config.segmenter.backbone} and classifier.backbone {config.classifier.backbone}; give other weights."
        )
    # Other networks have their own rules, which the trainings check: torch and timm take seconds to import
    if config.images.input_size % 8 != 1 and config.classifier.backbone in USUAL_BACKBONES:
        raise ValueError(
            f"images.input_size: given {config.images.input_size}, allowed: 8 g + 1, such as 321, for the backbone "
            f"{config.classifier.backbone}."
        )
    return config


def _read_toml(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not a TOML file ({error}).") from None


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {assignment}: write section.key=value, for example --set maps.num_samples=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # plain words need no quotes
    nested: Any = value
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        is_section = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if is_section else value
    return merged
