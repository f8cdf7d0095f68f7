"""Chooses the splits for training, validation and prediction, if the configuration names no existing splits.

Splits named ``val``, ``valid`` and ``validation`` are for validation. A split named ``test`` is not used for training
unless the user asks for it. If there is no validation split, masks are predicted for all images. In
`predictions.splits`, ``train`` and ``val`` stand for the splits of their kind.
"""

import difflib
import hashlib
from collections.abc import Collection, Mapping, Sequence

from cluster.words import plural
from jobs.run.config_keys import Config
from jobs.run.split_names import TEST, TRAINING, VALIDATION, is_usual, require_known_splits
from storage.sources import SourceImage

ROLE_KEYS = ("data.train_splits", "data.val_splits", "predictions.splits")


def with_roles(
    config: Config, splits: Collection[str], earlier: Collection[str] = (), unusable: Collection[str] = ()
) -> Config:
    """The configuration with `data.val_splits`, `data.train_splits` and `predictions.splits` for these splits.

    Args:
        splits: the names of the manifest's splits with usable images; "" for images without one.
        earlier: the splits of the run's previous manifest; values that were derived from them are derived again.
        unusable: further splits, without usable images.

    Returns:
        The same configuration if it names existing splits or if the defaults fit, else a changed one.

    Raises:
        ValueError: it names a split that no image has, and the name is not a usual one.
    """
    default = Config()
    if earlier:
        derived = _derived(default, earlier)
        config = _with(config, {key: _get(default, key) for key in derived if _get(config, key) == derived[key]})
    require_known_splits(config, [*splits, *unusable])
    return _with(config, _derived(config, splits))


def _derived(config: Config, splits: Collection[str]) -> dict[str, tuple[str, ...]]:
    """New values by key; empty if those of the configuration fit."""
    there, found = list(splits), dict[str, tuple[str, ...]]()
    validation = config.data.val_splits
    if not set(validation) & set(there) and validation == Config().data.val_splits:
        named = tuple(name for name in there if VALIDATION.fullmatch(name))
        if named:
            found["data.val_splits"] = validation = named
    held_out = [
        name for name in there if name not in validation and (TEST.fullmatch(name) or VALIDATION.fullmatch(name))
    ]
    if held_out and not set(config.data.train_splits) & set(there):
        training = tuple(name for name in there if name not in (*validation, *held_out))
        if training:
            found["data.train_splits"] = training
    predicted = _predicted(config, there, validation, found.get("data.train_splits", ()))
    if not set(predicted or validation) & set(there):
        predicted = tuple(there)
    if predicted != config.predictions.splits:
        found["predictions.splits"] = predicted
    return found


def _predicted(
    config: Config, there: Sequence[str], validation: Sequence[str], training: Sequence[str]
) -> tuple[str, ...]:
    """`predictions.splits`, with the splits of the same kind in the place of a usual name that no image has.

    So ``train`` and ``val`` stand for ``Train`` and ``valid``, and ``train`` for all splits that are trained on. Images
    without a split, beside ``train``, are like those of ``train``.
    """
    trained = training or config.data.train_splits

    def stands_for(name: str) -> list[str]:
        if name in there or not is_usual(name):
            return [name, *([""] if TRAINING.fullmatch(name) and "" in there and not trained else [])]
        if VALIDATION.fullmatch(name):
            found = [each for each in there if each in validation]
        elif TEST.fullmatch(name):
            found = [each for each in there if TEST.fullmatch(each)]
        else:
            found = [each for each in there if each not in validation and (not trained or each in trained)]
        return found or [name]  # images that are added later may be in it

    return tuple(dict.fromkeys(split for name in config.predictions.splits for split in stands_for(name)))


def set_aside(images: Sequence[SourceImage], fraction: float) -> list[SourceImage]:
    """The images with a part of them in the split val; the others without a split get the split train.

    The choice depends only on the ids, so it stays the same when images are added. A choice with the same share of each
    class would depend on the other images.

    Raises:
        ValueError: there already is a validation split.
    """
    named = next((image.split for image in images if VALIDATION.fullmatch(image.split)), None)
    if named is not None:
        raise ValueError(f"--val-fraction {fraction}: the images have a validation split already, {named!r}.")

    def chosen(image: SourceImage) -> SourceImage:
        digest = hashlib.blake2b(image.image_id.encode("utf-8", "surrogatepass"), digest_size=8, key=b"validation part")
        is_chosen = int.from_bytes(digest.digest(), "little") < fraction * 2**64 and not TEST.fullmatch(image.split)
        split = "val" if is_chosen else image.split or "train"
        return SourceImage(**(vars(image) | {"split": split}))  # dataclasses.replace takes three times as long

    return [chosen(image) for image in images]


def describe_roles(config: Config, counts: Mapping[str, int]) -> list[str]:
    """Sentences about the use of the splits; none if there are only a training and a validation split as usual."""
    validation = [name for name in config.data.val_splits if name in counts]
    chosen = [name for name in config.data.train_splits if name in counts]
    training = chosen or [name for name in counts if name not in validation]
    unused = [name for name in counts if name not in (*training, *validation)]
    lines = []
    if unused or validation != ["val"][: len(validation)]:
        lines.append(f"for training: {_names(training)}; for validation: {_names(validation)}.")
    for name in training:
        others = [*(other for other in counts if other != name), "train", "val", "valid", "test"]
        near = [] if not name or is_usual(name) else difflib.get_close_matches(name, others, n=1, cutoff=0.78)
        if near:
            lines.append(
                f"WARNING: is the split {name!r} misspelt? {near[0]!r} is similar, and {name!r} is used for training "
                f"({plural(counts[name], 'image')})."
            )
    if any(TEST.fullmatch(name) for name in training) and not chosen:
        lines.append("WARNING: the test images are trained on, because no image is in another split for training.")
    if unused:
        every = ",".join([*training, *unused])
        lines.append(f"not used for training: {_names(unused)}. To train on it too: '--set data.train_splits={every}'.")
    if not validation:
        predicted = [name for name in config.predicted_splits if name in counts]
        all_trained = f"Those of {_names(training)}" if unused else "All images"
        lines.append(
            f"no validation: no image is in the split {_names(config.data.val_splits)}. {all_trained} are used for "
            f"training, and masks are predicted for {'all' if len(predicted) == len(counts) else _names(predicted)}. "
            "If one of the splits is for validation, give --set data.val_splits=NAME. To take some images for "
            "validation, give --val-fraction 0.2."
        )
    left_out = [name for name in counts if name not in config.predicted_splits] if config.predictions.splits else []
    if left_out and validation:
        number = sum(counts[name] for name in left_out)
        every = ",".join(counts)
        lines.append(
            f"no predicted masks for {plural(number, 'image')} of {_names(left_out)}, because predictions.splits is "
            f"{_names(config.predictions.splits)}. For masks of all images: '--set predictions.splits={every}'."
        )
    return lines


def _names(splits: Collection[str]) -> str:
    return ", ".join(name or "no split" for name in splits) or "none"


def _get(config: Config, key: str) -> tuple[str, ...]:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _with(config: Config, values: Mapping[str, tuple[str, ...]]) -> Config:
    content = config.model_dump(mode="json")
    for key, value in values.items():
        section, _, name = key.partition(".")
        content[section][name] = list(value)
    return Config.model_validate(content)
