"""Fingerprints of steps, in one format for all steps, and the ids by which later steps refer to their results.

    algorithm_version   version of the code that computes the step's results
    manifest            hash of the manifest's columns that the step reads, of the rows that it began with
    added               the same for each group of images that was added since; absent if there is none
    <section>           the settings that change its results
    upstream            {name: id} of the steps that it read

A step's id changes when its results may have changed. The id of a training is the sha256 of its network. The id of a
unit step is the hash of its fingerprint. These ids show which steps are outdated. Added images change
no earlier result, so they change no id: a unit step computes them beside the others, and a trained network stays
(`jobs.steps.added_images`), also that of the cells until they are learned again.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jobs.run.config_keys import Config, DataConfig
from jobs.run.directory import CELL_RECORD, Run
from jobs.run.steps import BY_NAME, STEPS, StepRow
from jobs.run.training_record import read_complete
from storage.steps import ADDED

UPSTREAM = "upstream"
MASKS_CHANGED = "masks were added or changed since"


def step_settings(row: StepRow, config: Config) -> dict[str, Any]:
    """The settings that change a step's results, by section."""
    settings = {row.section: getattr(config, row.section).result_settings()}
    if row.name == "pseudo_labels":
        settings["seeds"] = {"background_cue": config.seeds.background_cue}
    if row.name == "cells":  # their labels are seeds by thresholds of their own
        settings["seeds"] = config.seeds.model_dump(include={"background_cue", "saliency_threshold", "priority"})
    if row.name in ("seeds", "pseudo_labels") and config.seeds.maps != "maps":
        settings["seeds"]["maps"] = config.seeds.maps  # not if it is the default, which earlier runs did not record
    if row.is_of_splits:
        settings[row.section]["splits"] = list(config.predicted_splits)
    if row.kind == "training":
        settings["data"] = config.data.result_settings()
    return settings


def step_fingerprint(
    run: Run,
    name: str,
    *,
    algorithm_version: int,
    upstream: Iterable[str],
    **others: Any,
) -> dict[str, Any]:
    """Everything that changes a step's results.

    Args:
        upstream: the steps that it reads; all are finished.
        others: everything else that changes results, such as the device.
    """
    settings = step_settings(BY_NAME[name], run.config)
    first, *added = _manifest_hashes(run, BY_NAME[name], settings)
    return {
        "algorithm_version": algorithm_version,
        "manifest": first,
        **({ADDED: added} if added else {}),
        **settings,
        UPSTREAM: {other: step_id(run, other) for other in upstream},
        **others,
    }


def masks_read(run: Run, settings: Mapping[str, Any]) -> set[str] | None:
    """The splits of whose images a training of a segmentation network reads masks; None if it reads none.

    Args:
        settings: a training's fingerprint, or its settings by section.
    """
    segmenter = settings.get("segmenter") or {}
    is_full = segmenter.get("supervision") == "masks"
    if not is_full and not segmenter.get("strong_splits"):
        return None
    data = DataConfig.model_validate(settings.get("data") or {})
    trained = {split for split in run.manifest().splits() if data.role_of(split) == "train"}
    return trained if is_full else trained & set(segmenter["strong_splits"])


def _manifest_hashes(run: Run, row: StepRow, settings: Mapping[str, Any]) -> list[str]:
    """The hash of what a step reads of the manifest: of the rows that the manifest began with, and of each addition."""
    manifest = run.manifest()
    splits = masks_read(run, settings)
    if splits is None:
        return manifest.part_hashes(row.columns)
    columns = (*row.columns, "mask_uri")
    every = manifest.part_hashes(columns)  # as earlier versions recorded it, with masks that the step does not read
    recorded = _recorded_hashes(run.step(row.name).fingerprint() or {})
    return every if recorded and every[: len(recorded)] == recorded else manifest.part_hashes(columns, splits)


def _recorded_hashes(fingerprint: Mapping[str, Any]) -> list[str]:
    return [fingerprint["manifest"], *fingerprint.get(ADDED, ())] if "manifest" in fingerprint else []


def manifest_change(run: Run, name: str) -> str:
    """What a step reads of the manifest and what has changed there since it was started, in words; "" if nothing has.

    Images that were added since are no change.
    """
    row, fingerprint = BY_NAME[name], run.step(name).fingerprint() or {}
    recorded = _recorded_hashes(fingerprint)
    if not recorded or _manifest_hashes(run, row, fingerprint)[: len(recorded)] == recorded:
        return ""
    words = {"uri": "images", "labels": "labels", "split": "splits", "saliency_uri": "saliency maps"}
    kinds = [words[column] for column in row.columns if column in words]
    if masks_read(run, fingerprint) is not None:
        if run.step("classifier").fingerprint() and not manifest_change(run, "classifier"):  # the rest is the same
            return MASKS_CHANGED
        kinds.append("masks")
    return f"{' or '.join(kinds)} in the manifest were changed since"


def with_settings(recorded: Mapping[str, Any], row: StepRow, config: Config) -> dict[str, Any]:
    """A step's recorded fingerprint with the settings of another configuration.

    If it differs from the recorded one, the step refuses this configuration.
    """
    others = {"seed": config.seed, "unit_size": config.unit_size}
    return {**recorded, **step_settings(row, config), **{key: others[key] for key in others if key in recorded}}


def step_id(run: Run, name: str) -> str | None:
    """The id of a step's results; None if a unit step was never started or a training is not finished."""
    if BY_NAME[name].kind == "training":
        complete = read_complete(run.step(name).data())
        return complete["sha256"] if complete else None
    fingerprint = run.step(name).fingerprint()
    if fingerprint is None:
        return None
    if (
        name == "cells" and (record := run.data(name) / CELL_RECORD).exists()
    ):  # its network may have learned from added images too
        learned = json.loads(record.read_bytes()).get(ADDED)
        fingerprint = {**fingerprint, "learned_from": learned} if learned else fingerprint
    return fingerprint_hash(fingerprint)


def fingerprint_hash(fingerprint: Mapping[str, Any]) -> str:
    """sha256 of a fingerprint, without what was added: it changes no earlier result."""
    content = {key: value for key, value in fingerprint.items() if key != ADDED}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def outdated_steps(run: Run, changed: Collection[str] = ()) -> set[str]:
    """The steps whose results no longer fit the results and the settings of other steps.

    They read results that have changed since or are outdated themselves, or what they read of the manifest has
    changed, such as the masks of a training. Pseudo-labels are also outdated if the seeds were started again with other
    settings that both use.

    Args:
        changed: steps whose results will change.
    """
    return _outdated(run, STEPS, changed)


def readers(run: Run, name: str) -> list[StepRow]:
    """The started steps that read a step's results, directly or through others."""
    found = list[StepRow]()
    for row in STEPS:  # upstream steps come first
        try:
            read: Collection[str] = upstream_ids(run.step(row.name).fingerprint())
        except ValueError:  # a damaged record, which must not keep other steps from being started again
            read = row.upstream
        if {name, *(each.name for each in found)}.intersection(read):
            found.append(row)
    return found


def is_outdated(run: Run, name: str) -> bool:
    """Whether a step is outdated; reads only the records of this step and of those before it that it may read."""
    return name in _outdated_before(run, name)


def outdated_in_words(run: Run, name: str) -> str:
    """A sentence for people who read the results of an outdated step; "" if it is not outdated.

    It names a command for each outdated step that was read, in their order: made from outdated results, a step would
    be outdated again.
    """
    outdated = _outdated_before(run, name)
    if name not in outdated:
        return ""
    cause = manifest_change(run, name) or "what it was made from has changed"
    plain = Run(run.location, run.config)  # without this launch's settings, because the recorded ones apply
    commands = [f"'{plain.step_command(other, '--restart', other)}'" for other in outdated]
    return (
        f"the step {BY_NAME[name].title} of {run.uri} is outdated, because {cause}. To compute it again: "
        f"{', then '.join(commands)}."
    )


def _outdated_before(run: Run, name: str) -> list[str]:
    """The outdated steps, in order, among a step and those that it was made from, directly or through others."""
    needed, read = {name}, {name}
    for row in reversed(STEPS):  # downstream steps come first
        needed |= set(row.upstream) if row.name in needed else set()
        read |= set(upstream_ids(run.step(row.name).fingerprint())) if row.name in read else set()
    rows = [row for row in STEPS if row.name in needed]
    found = _outdated(run, rows)
    return [row.name for row in rows if row.name in found & read]


def reads_current_results(run: Run, name: str) -> bool:
    """Whether the results that a step read are those that the run has now; they may be outdated themselves."""
    read = upstream_ids(run.step(name).fingerprint())
    return all(step_id(run, other) == id_ for other, id_ in read.items())


def _outdated(run: Run, rows: Iterable[StepRow], changed: Collection[str] = ()) -> set[str]:
    """The outdated steps among these, which are in the order of the table."""
    found: set[str] = set()
    for row in rows:  # upstream steps come first
        fingerprint = run.step(row.name).fingerprint() or {}
        read = upstream_ids(fingerprint)
        has_changed = not {*found, *changed}.isdisjoint(read) or not reads_current_results(run, row.name)
        has_old_settings = row.name == "pseudo_labels" and fingerprint and not _agrees(run, row, fingerprint)
        if has_changed or has_old_settings or _has_other_rows(run, row, fingerprint):
            found.add(row.name)
    return found


def _has_other_rows(run: Run, row: StepRow, fingerprint: Mapping[str, Any]) -> bool:
    """Whether what a step reads of the manifest has changed, so that the step must be made again.

    A training without masks stays valid: `prepare_dataset` keeps what it reads, and its network may be a copy from
    another run. Only its training is refused (`jobs.cli.pipeline.require_same_settings`).
    """
    if row.kind == "training" and masks_read(run, fingerprint) is None:
        return False
    return bool(manifest_change(run, row.name))


def _agrees(run: Run, row: StepRow, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a step used those settings of the section `seeds` that the seeds were started with, if they were."""
    started = run.step("seeds").fingerprint()
    if started is None:
        return True
    seeds = run.config.seeds.model_copy(update={"maps": "maps", **started.get("seeds", {})})
    wanted = step_settings(row, run.config.model_copy(update={"seeds": seeds}))["seeds"]
    return bool(fingerprint.get("seeds") == wanted)


def upstream_ids(fingerprint: Mapping[str, Any] | None) -> dict[str, str]:
    """{name: id} of the steps that a step read."""
    return dict((fingerprint or {}).get(UPSTREAM, {}))
