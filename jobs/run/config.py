"""One configuration per run: the recorded one, changed by a TOML file and then by `--set section.key=value`.

It is recorded in `run.json`, as soon as a launched step has accepted it. Unknown keys are refused.
"""

import difflib
import json
import tomllib
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from jobs.run.config_keys import USUAL_BACKBONES, Config
from jobs.run.config_sentences import refusal
from storage.location import IrregularFile, Location, TooLarge

_MOST_BYTES = 1_000_000  # of a file of settings


def resolve_config(recorded: dict[str, Any], config_file: str | None, assignments: Sequence[str]) -> Config:
    """The configuration of a launch: the recorded one, changed by a TOML file and then by assignments.

    Args:
        recorded: the configuration in `run.json`, {} for a new run.
        config_file: path or s3:// address of a TOML file, or None.
        assignments: each "section.key=value"; a value that is not valid TOML is taken as text.

    Raises:
        ValueError: one sentence that says what was given and what is allowed.
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
                "so random weights would never be trained; set frozen_stages to 0, or give weights."
            )
        if section.output_stride != 8 and section.backbone in USUAL_BACKBONES:
            raise ValueError(
                f"{name}.output_stride: given {section.output_stride}, allowed: 8 for the backbone {section.backbone}; "
                "other values need a network of timm."
            )
    if config.segmenter.weights == "classifier" and config.segmenter.backbone != config.classifier.backbone:
        raise ValueError(
            f"segmenter.weights: given 'classifier', allowed only if both backbones are the same, but "
            f"segmenter.backbone is {config.segmenter.backbone} and classifier.backbone is "
            f"{config.classifier.backbone}; give other weights."
        )
    # Other networks have their own rules, which the trainings check: torch and timm take seconds to import
    if config.images.input_size % 8 != 1 and config.classifier.backbone in USUAL_BACKBONES:
        raise ValueError(
            f"images.input_size: given {config.images.input_size}, allowed: a multiple of 8 plus 1, such as 321, for "
            f"the backbone {config.classifier.backbone}."
        )
    return config


def kept_settings(recorded: dict[str, Any], config_file: str, assignments: Sequence[str]) -> list[str]:
    """The recorded settings that differ from the defaults and that the launch does not name: "section.key = value"."""
    usual, now = _by_key(Config().model_dump(mode="json")), _named(config_file, assignments)
    return [
        f"{key} = {json.dumps(value)}"
        for key, value in _by_key(recorded).items()
        if value != usual.get(key, value) and key not in now
    ]


def is_named(key: str, config_file: str | None, assignments: Sequence[str]) -> bool:
    """Whether a launch names a key, in its file or by an assignment."""
    return key in _named(config_file, assignments)


def _named(config_file: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """The settings of a launch, without the recorded ones, by "section.key"."""
    named = _read_toml(config_file) if config_file else {}
    for assignment in assignments:
        named = _merged(named, _parse_assignment(assignment))
    return _by_key(named)


def _by_key(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by "section.key"; a key without a section stays as it is."""
    found = dict[str, Any]()
    for name, value in values.items():
        found |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _read_toml(path: str) -> dict[str, Any]:
    place = Location.parse(path)
    try:
        return tomllib.loads(place.read_whole(_MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"--config {path}: no such file.{_near(place)}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IrregularFile, TooLarge) as error:
        raise ValueError(f"--config {path}: not a TOML file ({error}).") from None


def _near(place: Location) -> str:
    """' Did you mean ...?' with the most similar TOML file in the folder of a missing one; '' if none is similar."""
    names = [name for name in place.parent.list_names() if name.endswith(".toml")]
    near = difflib.get_close_matches(place.name, names, n=1)
    return f" Did you mean {place.parent / near[0]}?" if near else ""


def _parse_assignment(assignment: str) -> dict[str, Any]:
    key, equals, text = assignment.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"--set {assignment}: write section.key=value, for example --set maps.num_samples=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # names and paths need no quotes
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
