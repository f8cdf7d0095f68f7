"""Checks a file for KubeRay: its groups of pods, and the command of its job, for `cluster.check_cluster_file`."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.quantity import quantity
from cluster.words import plural
from cluster.worker_pools import WRONG_TYPE, Pools, amount, cluster_spec, numbers_of, pools_of

_ROOT = Path(__file__).parents[1]
_ANSWER_SECONDS = 60

_DEVICES = {
    "run_pipeline": ("classifier", "maps", "segmenter", "predictions"),
    "train_ficklenet": ("classifier",),
    "generate_maps": ("maps",),
    "learn_cells": ("maps",),
    "refine_maps": ("maps",),
    "train_segmentation": ("segmenter",),
    "retrain_segmentation": ("segmenter",),
    "predict_masks": ("predictions",),
}
"""The scripts with steps that use GPUs, and the sections of the devices (`auto`: what the cluster has at the start)."""

_IN_IMAGE = "/opt/ficklenet"  # the project in the image of the Containerfile

_GPU, _MIB = "nvidia.com/gpu", 1 << 20

_SCRIPT = re.compile(r"\S+\.py\b")

_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def problems_of_document(document: dict[str, Any]) -> Iterator[str]:
    """Problems of one document for Kubernetes; of Ray's kinds, only RayCluster and RayJob are known."""
    kind = document.get("kind")
    if kind not in ("RayCluster", "RayJob"):
        if str(document.get("apiVersion")).startswith("ray.io/"):
            yield f"kind is {kind}. Write RayCluster or RayJob; this check knows no other kind of Ray."
        return
    spec = cluster_spec(document)
    if not isinstance(spec, dict):
        yield f"{kind} has no {'spec.rayClusterSpec' if kind == 'RayJob' else 'spec'}."
        return
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield f"{kind} has no 'authOptions: {{mode: token}}': who reaches the head's port could run code. Add it."
    if not spec.get("rayVersion"):
        yield f"{kind} has no rayVersion. Write the version of Ray in the image."
    elif str(spec["rayVersion"]) != (installed := version("ray")):
        yield (
            f"{kind} has rayVersion {spec['rayVersion']}, but the Containerfile of this project installs {installed}. "
            "The two must be equal."
        )
    groups = [spec.get("headGroupSpec"), *(spec.get("workerGroupSpecs") or [])]
    names = [group.get("groupName") for group in groups[1:] if isinstance(group, dict)]
    for name in sorted({str(each) for each in names if each and names.count(each) > 1}):
        yield f"Several groups have the name {name}. Give each group a name of its own."
    own = (document.get("metadata") or {}).get("name")
    for name in filter(None, (own, *names)):
        if not _POD_NAME.fullmatch(str(name)):
            yield (
                f"The name {name} becomes a part of the pods' names, which may have lower-case letters, digits and '-' "
                "only, so no pod would start. Change it."
            )
    wrong = [problem for number, group in enumerate(groups) for problem in _group(group, is_head=number == 0)]
    yield from wrong
    if not wrong:
        pods = [group["template"] for group in groups]
        pods += [document["spec"]["submitterPodTemplate"]] if document["spec"].get("submitterPodTemplate") else []
        images = {pod["spec"]["containers"][0]["image"] for pod in pods}
        if len(images) > 1:
            yield f"The pods have the images {' and '.join(sorted(images))}. All of them must have the same one."
    waits_for_pods = "cluster.autoscaling=true" in str(document["spec"].get("entrypoint"))
    if waits_for_pods and not spec.get("enableInTreeAutoscaling"):
        yield "The entrypoint waits for workers, but the autoscaler is off. Write enableInTreeAutoscaling: true."
    if kind == "RayJob":
        keys = ("backoffLimit", "activeDeadlineSeconds", "ttlSecondsAfterFinished")
        yield from _no_numbers(document["spec"], "RayJob", keys)
        yield from _command(document["spec"])
    if kind == "RayJob" and not wrong:
        yield from _settings(document["spec"], pools_of(document))


def _group(group: Any, *, is_head: bool) -> Iterator[str]:
    """Problems of a group of pods."""
    name = "headGroupSpec" if is_head else f"group {group.get('groupName', '?') if isinstance(group, dict) else '?'}"
    try:
        container = group["template"]["spec"]["containers"][0]
        cpus = amount(group, "cpu")
        needed = {"image": container.get("image"), "resources.requests.cpu": cpus}
        if not is_head:
            needed |= {"groupName": group.get("groupName"), "maxReplicas": group.get("maxReplicas") is not None}
    except WRONG_TYPE:
        yield f"{name} needs template.spec.containers, with an image and its resources in whole numbers of CPUs."
        return
    yield from (f"{name} has no {key}. Add it." for key, value in needed.items() if not value)
    resources = container.get("resources") or {}
    requests, limits = (resources.get(key) or {} for key in ("requests", "limits"))
    for resource in requests.keys() & limits.keys():
        if quantity(requests[resource]) > quantity(limits[resource]):
            yield (
                f"{name} requests {resource}: {requests[resource]}, but its limit is {limits[resource]}, so Kubernetes "
                "would refuse the pod. Raise the limit or lower the request."
            )
        elif (
            not is_head and resource in ("cpu", "memory") and quantity(requests[resource]) < quantity(limits[resource])
        ):
            yield (
                f"{name} requests {resource}: {requests[resource]}, but its limit is {limits[resource]}. Ray would use "
                "the limit, which the node need not have. Write one value in both."
            )
    yield from (f"{name} {problem}" for problem in _resources(group, requests, limits))
    if "/dev/shm" not in [each.get("mountPath") for each in container.get("volumeMounts") or []]:
        yield (
            f"{name} has no volume at /dev/shm, where a pod has 64 MiB, so Ray would put its store on the disk. Add "
            "volume and volumeMounts as in the file of this project."
        )
    memory = amount(group, "memory")
    for volume in group["template"]["spec"].get("volumes") or []:
        size = (volume.get("emptyDir") or {}).get("sizeLimit")
        if size and volume["emptyDir"].get("medium") == "Memory" and quantity(size) < 0.3 * memory:
            yield (
                f"{name} has sizeLimit {size} for the shared memory, less than 30 % of the pod's memory, so Ray would "
                "put its store on the disk. Raise it."
            )
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
    yield from _no_numbers(group, name, ("minReplicas", "maxReplicas", "replicas"))
    if not is_head and isinstance(least, int) and isinstance(most, int) and least > most:
        yield f"{name} has minReplicas {least} and maxReplicas {most}. Lower the first or raise the second."


def _no_numbers(part: dict[str, Any], name: str, keys: Iterable[str]) -> Iterator[str]:
    """Keys that need a whole number and have something else."""
    for key in keys:
        if key in part and not isinstance(part[key], int):
            yield f"{name} has {key}: {part[key]!r}. Write a whole number, without quotation marks and without a unit."


def _resources(group: Any, requests: dict[str, Any], limits: dict[str, Any]) -> Iterator[str]:
    """Resources that Kubernetes would refuse, or that are not what was meant."""
    for key in sorted({*requests, *limits}):
        if re.fullmatch(r"nvidia\.com/gpus|nvidia/gpu|nvidia\.com\.gpu|gpus?", key, re.IGNORECASE):
            yield f"has the resource {key}, which no node has. Write {_GPU}."
    if _GPU in requests and _GPU not in limits:
        yield f"requests {_GPU} without a limit, so Kubernetes would refuse the pod. Add the same limit."
    tolerated = [each.get("key") for each in group["template"]["spec"].get("tolerations") or []]
    if _GPU in tolerated and not amount(group, _GPU):
        yield f"may run on nodes with GPUs (its toleration), but asks for none. Add {_GPU} to its requests and limits."
    for key in ("memory", "ephemeral-storage"):
        for value in {requests.get(key), limits.get(key)} - {None}:
            if 0 < quantity(value) < _MIB:
                yield f"has {key}: {value}, which is {quantity(value):,.0f} bytes. Write a unit, such as Gi."


def _command(spec: dict[str, Any]) -> Iterator[str]:
    """What is wrong in a job's command, whatever its groups of pods are."""
    command = spec.get("entrypoint") or ""
    if not command:
        yield "RayJob has no entrypoint, the command of the job."
        return
    if "--restart" in command and spec.get("backoffLimit"):
        yield "The entrypoint has --restart: each attempt would delete the results again. Set backoffLimit to 0."
    if re.search(r"\\(\s|$)", command):
        yield "The entrypoint has a backslash at the end of a line. Leave it out: YAML joins the lines of this text."
    run = re.search(r"--run[ =]+(\S+)", command)
    is_known = run is None or "$" in run[1] or run[1].startswith(("s3://", *_mounted(spec)))
    if run and not is_known and re.match(r"\w+:|s3/", run[1]):
        yield f"The entrypoint has --run {run[1]}, which is no place for a run. Give s3://bucket/run."
    elif run and not is_known:
        yield f"The entrypoint has --run {run[1]}, a folder of one pod. Give s3://bucket/run, or mount a volume."
    file = re.search(r"--config[ =]+(/\S+)", command)
    if file and not any(file[1].startswith(each) for each in _mounted(spec)):
        yield f"The entrypoint has --config {file[1]}, which is not in the pods. Give its values with --set instead."
    for key, value in re.findall(r"--set[ =]+(\w+\.weights)=(\S+)", command):
        is_in_image = value.startswith(("s3://", "package:", f"{_IN_IMAGE}/", *_mounted(spec))) or "$" in value
        if not is_in_image and re.search(r"/|\.(pt|pth|safetensors)$", value):
            yield (
                f"The entrypoint has {key}={value}, which is neither on S3 nor in the image. Give s3://bucket/file, or "
                "mount a volume."
            )
    for given in _SCRIPT.findall(command):
        script = f"jobs/{Path(given).name}"
        if not (_ROOT / script).exists():
            yield f"The entrypoint runs {given}, and this project has no such script."
        elif given not in (script, f"{_IN_IMAGE}/{script}"):
            yield f"The entrypoint runs {given}, but in the image of this project it is {_IN_IMAGE}/{script}."
        elif Path(given).stem in _DEVICES and not re.search(r"--run[ =]", command):
            yield "The entrypoint has no --run, the place of the run. Add --run s3://bucket/run."
    if "cluster.autoscaling=true" not in command:
        yield "The entrypoint has no --set cluster.autoscaling=true, so the job would not wait for workers. Add it."


def _settings(spec: dict[str, Any], pools: Pools) -> Iterator[str]:
    """Settings of a job's command that do not fit its groups of pods."""
    command = spec.get("entrypoint") or ""
    given = dict(re.findall(r"--set[ =]+cluster\.(\w+)=(\d+)(?=\s|$)", command))
    on_gpus = bool(re.search(r"\b(classifier|segmenter)\.device=cuda", command))
    for key, most in numbers_of(pools, trains_on_gpus=on_gpus).items():
        if key in given and int(given[key]) > most:
            yield f"The entrypoint sets cluster.{key}={given[key]}, but the groups allow {most}. Change one of the two."
    workers, cpus = int(given.get("training_workers", 1)), int(given.get("cpus_per_training_worker", 1)) or 1
    room = sum(most * min(there // cpus, gpus if on_gpus else there) for most, there, gpus in pools)
    has_gpus = any(most and gpus for most, _, gpus in pools)
    if workers > room and (has_gpus or not on_gpus):  # without any GPU, the sentence below says it
        each = f"{plural(cpus, 'CPU')}{' and 1 GPU' if on_gpus else ''}"
        yield (
            f"The job trains with {plural(workers, 'worker')} of {each}, but the groups have room for {room}. Change "
            "cluster.training_workers, cluster.cpus_per_training_worker or the groups."
        )
    if "device=cuda" in command and not has_gpus:
        yield "The entrypoint sets a device to cuda, but no group has GPUs: the job would wait without a time limit."
    sections = dict.fromkeys(key for script in _SCRIPT.findall(command) for key in _DEVICES.get(Path(script).stem, ()))
    unset = [f"{key}.device" for key in sections if not re.search(rf"\b{key}\.device=(?!auto\b)", command)]
    if has_gpus and unset:
        flags = " ".join(f"--set {key}=cuda" for key in unset)
        yield (
            f"A group has GPUs, but the entrypoint does not set {' and '.join(unset)}. No GPU is there when the job "
            f"starts, so steps would compute on CPUs to their end. Add {flags}, or cpu where you want it."
        )
    driver = "entrypointNumGpus" if "device=cuda" in command else "entrypointNumCpus"
    if re.search(r"\s--dry-run\b", command) and not spec.get(driver):
        yield (
            "The entrypoint has --dry-run, which times the steps where the driver runs, and that is the head. Write "
            f"{driver}: 1 beside the entrypoint, and the driver runs on a worker."
        )


def answer_of_script(job: dict[str, Any]) -> Iterator[str]:
    """What the script of the entrypoint says of its flags and settings.

    It runs here, in an empty folder, with a run that does not exist. It refuses wrong flags and settings first, and
    then the run, so it starts nothing.
    """
    try:
        words = shlex.split(job["spec"]["entrypoint"].replace("--run=", "--run "))
    except ValueError as error:
        yield f"The entrypoint is no command of a shell ({error}). Correct its quotation marks."
        return
    number = next((each for each, word in enumerate(words) if word.endswith(".py")), len(words))
    script = _ROOT / "jobs" / Path(words[number]).name if number < len(words) else None
    arguments = list(takewhile(lambda word: word not in ("&&", "||", ";", "|"), words[number + 1 :]))
    if script is None or "--run" not in arguments[:-1] or script.stem == "prepare_dataset":
        return
    with TemporaryDirectory() as folder:
        run = arguments.index("--run") + 1
        given, arguments[run] = arguments[run], f"{folder}/none"
        try:
            done = subprocess.run(
                [sys.executable, script, *arguments],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(_ROOT)},
                capture_output=True,
                text=True,
                timeout=_ANSWER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            yield f"{script.name} did not say in {_ANSWER_SECONDS} s whether it knows its flags. Check the file again."
            return
    if done.returncode and f"{arguments[run]} does not exist" not in done.stderr:
        answer = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        yield f"The script of the entrypoint refuses its flags or settings: {answer.replace(arguments[run], given)}"


def _mounted(spec: dict[str, Any]) -> list[str]:
    """The places at which the head has volumes; all places if the head is not a pod."""
    try:
        container = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
        return [str(each.get("mountPath")) for each in container.get("volumeMounts") or []]
    except WRONG_TYPE:
        return ["/"]
