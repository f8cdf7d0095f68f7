"""Checks a cluster file for `ray up` or for KubeRay offline: `python -m cluster.check_cluster_file my.yaml`.

It finds values in angle brackets that are left, missing keys, groups and subnets, and values that do not fit together.
Then it prints which other lines differ from the shipped file. It asks neither AWS nor Kubernetes whether values exist.
"""

import copy
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from itertools import takewhile
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cluster.aws_nodes import problems_of_nodes
from cluster.quantity import quantity
from cluster.shipped_file import differences_of
from cluster.words import plural

_WRONG_TYPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading a file raises where a value is, for example, a text instead of a list."""

_ROOT = Path(__file__).parents[1]
_ANSWER_SECONDS = 60

_COMMENT = re.compile(r"(^|\s)#.*")
_OWN_HOST = re.compile(r"--dashboard-host[ =](127\.0\.0\.1|localhost)\b")
_ON_GPUS = {
    f"jobs/{name}.py"
    for name in ("run_pipeline", "train_ficklenet", "generate_maps", "train_segmentation", "predict_masks")
}
"""The scripts with steps that use GPUs, and take what the cluster has when they start."""

_TOKEN = "/home/ray/.ray/auth_token"  # for the user of the image in the Containerfile

_IN_IMAGE = "/opt/ficklenet"  # the project in the image of the Containerfile

_BRACKETS = re.compile(r"<[A-Za-z][\w-]*>")
_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def main(files: list[str]) -> int:
    """Prints what is wrong in each file; returns the exit code: 0, or 2 if something is wrong."""
    if not files or files[0].startswith("-"):
        _print("Usage: python -m cluster.check_cluster_file FILE [FILE ...]")
        return 0 if files[:1] in (["-h"], ["--help"]) else 2
    has_problems = False
    for file in files:
        try:
            text = Path(file).read_text()
        except FileNotFoundError:
            text, problems = "", ["There is no such file. Is the path right?"]
        except UnicodeDecodeError:
            text, problems = "", ["This is not a text file. Give a cluster file in YAML."]
        except OSError as error:
            text, problems = "", [f"It cannot be read ({error.strerror})."]
        else:
            problems = problems_of(text)
        has_problems |= bool(problems)
        if problems:
            _print(f"{file}: {plural(len(problems), 'problem')}.")
        for problem in problems:
            _print(f"- {problem}")
        shipped, differences = compared_with_shipped(text)
        if differences:
            why = "" if problems else ", because nothing else judges them"
            _print(f"{file}: these lines differ from the shipped {shipped}; check each{why}:")
        for difference in differences:
            _print(f"- {difference}")
        if not problems:
            number = len(differences)
            verb = "line differs" if number == 1 else "lines differ"
            _print(f"{file}: no problem was found" + (f", {number} {verb} from the shipped file." if number else "."))
        if (settings := job_settings_of(text)) and not problems:
            _print(f"For a job that uses all of its workers: {settings}")
    return 2 if has_problems else 0


def compared_with_shipped(text: str) -> tuple[str, list[str]]:
    """The names of the shipped files of a file's kind, and a line for each difference; none if it is not YAML."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError:
        documents = []  # problems_of says why
    return differences_of(documents) if documents else ("", [])


def problems_of(text: str) -> list[str]:
    """What is wrong in a cluster file, one or two sentences each; none if nothing was found."""
    found = list(_brackets(text))
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        return [*found, f"This is not YAML: {' '.join(str(error).split())}."]
    if not documents or not all(isinstance(each, dict) for each in documents):
        return [*found, "The file has no keys. Start from the file of this project, and change its values."]
    check = _kuberay if any("apiVersion" in each for each in documents) else _launcher
    try:
        for document in documents:
            found.extend(check(document))
    except _WRONG_TYPE as error:
        found.append(f"A value has the wrong type ({error}). Compare the file with the one of this project.")
    if not found:
        found.extend(answer for each in documents if each.get("kind") == "RayJob" for answer in _answer_of_script(each))
    return found


def job_settings_of(text: str) -> str:
    """The `--set` of a job that uses all workers of a valid cluster file; nothing if it has no workers."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
        pools = [pool for each in documents for pool in _pools(each)]
        numbers = _numbers(pools, trains_on_gpus=False)
    except (yaml.YAMLError, *_WRONG_TYPE):
        return ""  # problems_of says why
    settings = {"autoscaling": "true"} | {key: str(value) for key, value in numbers.items() if value}
    if numbers["max_actors"]:  # then the trainings are on GPUs, and one CPU beside a GPU is enough
        settings.pop("cpus_per_training_worker", None)
    flags = [f"cluster.{key}={value}" for key, value in settings.items() if any(numbers.values())]
    if numbers["max_actors"]:
        flags += [f"{step}.device=cuda" for step in ("classifier", "maps", "segmenter", "predictions")]
    return " ".join(f"--set {flag}" for flag in flags)


def _numbers(pools: list[tuple[int, int, int]], *, trains_on_gpus: bool) -> dict[str, int]:
    """The largest values of keys of section `cluster` for (most workers, CPUs, GPUs) of each type of worker."""
    without_gpu = [(most, cpus) for most, cpus, gpus in pools if most and cpus and not gpus]
    of_training = [cpus for most, cpus, gpus in pools if most and gpus] if trains_on_gpus else []
    return {
        "max_actors": sum(most * gpus for most, _, gpus in pools),
        "max_cpu_actors": sum(most * cpus for most, cpus in without_gpu),
        "cpus_per_training_worker": max(of_training or [cpus - 1 for _, cpus in without_gpu], default=0),
    }


def _pools(document: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(most workers, CPUs, GPUs) of each type of worker."""
    if "available_node_types" in document:
        types = dict(document["available_node_types"])
        types.pop(document["head_node_type"])
        default = document.get("max_workers", 0)
        return [
            (each.get("max_workers", default), each["resources"].get("CPU", 0), each["resources"].get("GPU", 0))
            for each in types.values()
            if "resources" in each
        ]
    groups = (_cluster_spec(document) or {}).get("workerGroupSpecs", [])
    return [(each["maxReplicas"], _amount(each, "cpu"), _amount(each, "nvidia.com/gpu")) for each in groups]


def _brackets(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if left := list(dict.fromkeys(_BRACKETS.findall(_COMMENT.sub("", line)))):
            values = "value" if len(left) == 1 else "values"
            yield f"Line {number}: replace {' and '.join(left)} with your own {values}."


# Ray's launcher


def _launcher(config: dict[str, Any]) -> Iterator[str]:
    """Problems of a file for `ray up`."""
    provider, types = config.get("provider"), config.get("available_node_types")
    if not isinstance(provider, dict) or "type" not in provider:
        yield "provider.type is missing. For AWS it is aws."
        return
    if not isinstance(types, dict) or not all(isinstance(each, dict) for each in types.values()):
        yield "available_node_types must name at least the type of the head, each with its keys."
        return
    head = config.get("head_node_type")
    if head not in types:
        yield f"head_node_type is {head!r}, but available_node_types has {', '.join(types)}. Write one of these names."
        return
    if wrong := list(_rays_check(config)):
        yield from wrong
        return
    if provider["type"] == "aws":
        yield from problems_of_nodes(config)
    yield from _token(config)
    if any(
        "--dashboard-host" in each and not _OWN_HOST.search(each)
        for each in config.get("head_start_ray_commands") or []
    ):
        yield "head_start_ray_commands opens the dashboard to the network. Write --dashboard-host=127.0.0.1."
    workers = {name: each for name, each in types.items() if name != head}
    yield from _most_workers(config, workers)
    yield from _start_commands(config)
    for name, node_type in workers.items():
        options = [*_run_options(config), *_run_options(node_type)]
        if (node_type.get("resources") or {}).get("GPU") and not any("--gpus" in each for each in options):
            yield (
                f"{name} declares GPUs, but its container would see none. Add 'docker: {{worker_run_options: "
                "[--gpus=all]}' to this type."
            )


def _run_options(part: dict[str, Any]) -> list[str]:
    """The options of the containers of workers: those of the whole file, or those of one type of node."""
    docker = part.get("docker") or {}
    return [*(docker.get("run_options") or []), *(docker.get("worker_run_options") or [])]


def _token(config: dict[str, Any]) -> Iterator[str]:
    """Whether the nodes ask for the cluster's token, and get it where they look for it."""
    options = " ".join((config.get("docker") or {}).get("run_options") or [])
    if not re.search(r"--env[ =]RAY_AUTH_MODE=token(\s|$)", options):
        yield "docker.run_options has no '--env RAY_AUTH_MODE=token': who reaches the ports could run code. Add it."
        return
    given = re.search(r"RAY_AUTH_TOKEN_PATH=(\S+)", options)
    places = [given[1]] if given else [_TOKEN, "~/.ray/auth_token"]
    targets = list(config.get("file_mounts") or {})
    if not set(places) & set(targets):
        other = next((each for each in targets if "auth_token" in str(each)), None)
        if other:
            yield f"file_mounts has the token at {other}, but the nodes read it at {places[0]}. Write this place."
        else:
            yield f"file_mounts has no {places[0]}, so the nodes would have no token. Add it."


def _start_commands(config: dict[str, Any]) -> Iterator[str]:
    """Commands of the head without the autoscaler's file, or of the workers with another port than the head's."""
    head, workers = (" ".join(config.get(f"{each}_start_ray_commands") or []) for each in ("head", "worker"))
    if "--autoscaling-config" not in head:
        yield (
            "head_start_ray_commands has no --autoscaling-config, so no worker would come. Add "
            "--autoscaling-config=~/ray_bootstrap_config.yaml to ray start."
        )
    port = re.search(r"--port[ =](\d+)", head)
    joined = re.search(r"--address[ =]\S+:(\d+)", workers)
    if port and joined and port[1] != joined[1]:
        yield f"The head listens on port {port[1]}, but the workers join port {joined[1]}. Write the same number."


def _rays_check(config: dict[str, Any]) -> Iterator[str]:
    """What Ray's own schema says."""
    from jsonschema import ValidationError  # a package that Ray requires
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.WARNING)  # it prints each default
    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except ValidationError as error:
        place = ".".join(map(str, error.absolute_path)) or "the top level"
        yield f"Ray's schema, at {place}: {error.message}."
    except (*_WRONG_TYPE, AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
        yield f"Ray cannot read the file ({type(error).__name__}: {error})."


def _most_workers(config: dict[str, Any], workers: dict[str, dict[str, Any]]) -> Iterator[str]:
    together = config.get("max_workers")
    if not isinstance(together, int):
        yield "max_workers is missing: Ray would start at most 2 workers. Write the number for all types together."
        return
    for name, node_type in workers.items():
        most, least = node_type.get("max_workers", together), node_type.get("min_workers", 0)
        if most > together:
            yield (
                f"{name} has max_workers {most}, but max_workers of the whole cluster is {together}, so no more come. "
                "Change one of the two."
            )
        if least > most:
            yield f"{name} has min_workers {least} and max_workers {most}. Lower the first or raise the second."
    if workers and not any(each.get("max_workers", together) for each in workers.values()):
        yield "No type has a max_workers above 0, so no worker comes, and the head computes nothing. Raise one."


# KubeRay


def _kuberay(document: dict[str, Any]) -> Iterator[str]:
    """Problems of one document for Kubernetes; of Ray's kinds, only RayCluster and RayJob are known."""
    kind = document.get("kind")
    if kind not in ("RayCluster", "RayJob"):
        if str(document.get("apiVersion")).startswith("ray.io/"):
            yield f"kind is {kind}. Write RayCluster or RayJob; this check knows no other kind of Ray."
        return
    spec = _cluster_spec(document)
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
    if kind == "RayJob" and not wrong:
        yield from _entrypoint(document["spec"], _pools(document))


def _group(group: Any, *, is_head: bool) -> Iterator[str]:
    """Missing keys of a group of pods."""
    name = "headGroupSpec" if is_head else f"group {group.get('groupName', '?') if isinstance(group, dict) else '?'}"
    try:
        container = group["template"]["spec"]["containers"][0]
        cpus = _amount(group, "cpu")
        needed = {"image": container.get("image"), "resources.requests.cpu": cpus}
        if not is_head:
            needed |= {"groupName": group.get("groupName"), "maxReplicas": group.get("maxReplicas") is not None}
    except _WRONG_TYPE:
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
    if "/dev/shm" not in [each.get("mountPath") for each in container.get("volumeMounts") or []]:
        yield (
            f"{name} has no volume at /dev/shm, where a pod has 64 MiB, so Ray would put its store on the disk. Add "
            "volume and volumeMounts as in the file of this project."
        )
    memory = _amount(group, "memory")
    for volume in group["template"]["spec"].get("volumes") or []:
        size = (volume.get("emptyDir") or {}).get("sizeLimit")
        if size and volume["emptyDir"].get("medium") == "Memory" and quantity(size) < 0.3 * memory:
            yield (
                f"{name} has sizeLimit {size} for the shared memory, less than 30 % of the pod's memory, so Ray would "
                "put its store on the disk. Raise it."
            )
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
    if not is_head and least > most:
        yield f"{name} has minReplicas {least} and maxReplicas {most}. Lower the first or raise the second."


def _entrypoint(spec: dict[str, Any], pools: list[tuple[int, int, int]]) -> Iterator[str]:
    """Settings of a job's command that do not fit its groups of pods."""
    command = spec.get("entrypoint") or ""
    if not command:
        yield "RayJob has no entrypoint, the command of the job."
        return
    if "--restart" in command and spec.get("backoffLimit"):
        yield "The entrypoint has --restart: each attempt would delete the results again. Set backoffLimit to 0."
    run = re.search(r"--run[ =]+(\S+)", command)
    if run and re.match(r"\w+:", run[1]) and not run[1].startswith("s3://"):
        yield f"The entrypoint has --run {run[1]}, which is no place for a run. Give s3://bucket/run."
    elif run and run[1].startswith("/") and not any(run[1].startswith(each) for each in _mounted(spec)):
        yield f"The entrypoint has --run {run[1]}, a folder of one pod. Give s3://bucket/run, or mount a volume."
    file = re.search(r"--config[ =]+(/\S+)", command)
    if file and not any(file[1].startswith(each) for each in _mounted(spec)):
        yield f"The entrypoint has --config {file[1]}, which is not in the pods. Give its values with --set instead."
    given_script = re.search(r"\S+\.py\b", command)
    script = f"jobs/{Path(given_script[0]).name}" if given_script else ""
    if given_script and not (_ROOT / script).exists():
        yield f"The entrypoint runs {given_script[0]}, and this project has no such script."
    elif given_script and given_script[0] not in (script, f"{_IN_IMAGE}/{script}"):
        yield f"The entrypoint runs {given_script[0]}, but in the image of this project it is {_IN_IMAGE}/{script}."
    if script in _ON_GPUS and not re.search(r"--run[ =]", command):
        yield "The entrypoint has no --run, the place of the run. Add --run s3://bucket/run."
    if "cluster.autoscaling=true" not in command:
        yield "The entrypoint has no --set cluster.autoscaling=true, so the job would not wait for workers. Add it."
    given = dict(re.findall(r"--set[ =]+cluster\.(\w+)=(\d+)(?=\s|$)", command))
    on_gpus = bool(re.search(r"\b(classifier|segmenter)\.device=cuda", command))
    for key, most in _numbers(pools, trains_on_gpus=on_gpus).items():
        if key in given and int(given[key]) > most:
            yield f"The entrypoint sets cluster.{key}={given[key]}, but the groups allow {most}. Change one of the two."
    workers, cpus = int(given.get("training_workers", 1)), int(given.get("cpus_per_training_worker", 1)) or 1
    room = sum(most * min(there // cpus, gpus if on_gpus else there) for most, there, gpus in pools)
    if workers > room:
        yield (
            f"The entrypoint sets cluster.training_workers={workers} of {plural(cpus, 'CPU')} each, but the groups "
            f"have room for {room}. Change one of the two."
        )
    has_gpus = any(most and gpus for most, _, gpus in pools)
    if "device=cuda" in command and not has_gpus:
        yield "The entrypoint sets a device to cuda, but no group has GPUs: the job would wait without a time limit."
    if "device=cuda" not in command and has_gpus and script in _ON_GPUS:
        yield (
            "A group has GPUs, but the entrypoint sets no device to cuda. No GPU is there when the job starts, so it "
            "would compute on CPUs. Add it, such as --set maps.device=cuda, for each step that the job runs."
        )


def _answer_of_script(job: dict[str, Any]) -> Iterator[str]:
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
    """The places at which the head has volumes."""
    container = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    return [str(each.get("mountPath")) for each in container.get("volumeMounts") or []]


def _cluster_spec(document: dict[str, Any]) -> Any:
    spec = document.get("spec") or {}
    return spec.get("rayClusterSpec") if document.get("kind") == "RayJob" else spec


def _amount(group: Any, resource: str) -> int:
    """How much of a resource a pod's first container has, as Ray reads it: the limit, else the request, rounded up."""
    resources = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits, requests = (resources.get(key) or {} for key in ("limits", "requests"))
    return ceil(quantity(limits.get(resource, requests.get(resource, 0))))


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
