"""Checks a cluster file for `ray up` or for KubeRay offline: `python -m cluster.check_cluster_file my.yaml`.

It finds values in angle brackets that are left, missing keys, groups and subnets, and values that do not fit together.
Then it prints which other lines differ from the shipped file, the settings of a job that uses all workers, and for AWS
the quotas and machine types that the account must allow. It asks neither AWS nor Kubernetes whether values exist.
"""

import copy
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cluster.aws_nodes import needs_float32, needs_of_nodes, problems_of_nodes
from cluster.kuberay_file import answer_of_script, problems_of_document
from cluster.shipped_file import differences_of
from cluster.words import plural
from cluster.worker_pools import WRONG_TYPE, numbers_of, pools_of

_COMMENT = re.compile(r"(^|\s)#.*")
_OWN_HOST = re.compile(r"--dashboard-host[ =](127\.0\.0\.1|localhost)\b")
_TOKEN = "/home/ray/.ray/auth_token"  # for the user of the image in the Containerfile

_BRACKETS = re.compile(r"<[A-Za-z][\w-]*>")


def main(files: list[str]) -> int:
    """Prints what is wrong in each file; returns the exit code: 0, or 2 if something is wrong."""
    if not files or files[0].startswith("-"):
        _print(f"Usage: python -m cluster.check_cluster_file FILE [FILE ...]\n\n{(__doc__ or '').rstrip()}")
        return 0 if files[:1] in (["-h"], ["--help"]) else 2
    has_problems, images = False, dict[str, str]()
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
        images |= dict.fromkeys(images_of(text), file)
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
        if problems:
            continue
        if settings := job_settings_of(text):
            _print(f"For a job that uses all of its workers: {settings}")
        for sentence in needs_of(text):
            _print(sentence)
    if len(images) > 1:
        names = " and ".join(f"{image} in {file}" for image, file in images.items())
        _print(f"These files together have several images: {names}. For one version of the project, write one.")
    return 2 if has_problems else 0


def images_of(text: str) -> list[str]:
    """The container images that a cluster file names."""
    return list(dict.fromkeys(re.findall(r"^[\s-]*image:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)))


def compared_with_shipped(text: str) -> tuple[str, list[str]]:
    """The names of the shipped files of a file's kind, and a line for each difference; none if it is not YAML."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError:
        documents = []  # problems_of says why
    return differences_of(documents) if documents else ("", [])


def problems_of(text: str) -> list[str]:
    """What is wrong in a cluster file, one or two sentences each; none if nothing was found."""
    found = [*_brackets(text), *_accounts(text)]
    try:
        documents = [each for each in yaml.safe_load_all(text) if each is not None]
    except yaml.YAMLError as error:
        return [*found, f"This is not YAML: {' '.join(str(error).split())}."]
    if not documents or not all(isinstance(each, dict) for each in documents):
        return [*found, "The file has no keys. Start from the file of this project, and change its values."]
    check = problems_of_document if any("apiVersion" in each for each in documents) else _launcher
    try:
        for document in documents:
            found.extend(check(document))
    except WRONG_TYPE as error:
        found.append(f"A value has the wrong type ({error}). Compare the file with the one of this project.")
    if not found:
        found.extend(answer for each in documents if each.get("kind") == "RayJob" for answer in answer_of_script(each))
    return found


def job_settings_of(text: str) -> str:
    """The `--set` of a job that uses all workers of a valid cluster file; nothing if it has no workers."""
    try:
        documents = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
        pools = [pool for each in documents for pool in pools_of(each)]
        has_t4 = any(map(needs_float32, documents))
        numbers = numbers_of(pools, trains_on_gpus=False)
    except (yaml.YAMLError, *WRONG_TYPE):
        return ""  # problems_of says why
    settings = {"autoscaling": "true"} | {key: str(value) for key, value in numbers.items() if value}
    if numbers["max_actors"]:  # then the trainings are on GPUs, and one CPU beside a GPU is enough
        settings.pop("cpus_per_training_worker", None)
    flags = [f"cluster.{key}={value}" for key, value in settings.items() if any(numbers.values())]
    if numbers["max_actors"]:
        steps = ("classifier", "maps", "segmenter", "predictions")
        flags += [f"{step}.device=cuda" for step in steps]
        flags += [f"{step}.precision=float32" for step in steps if has_t4]
    return " ".join(f"--set {flag}" for flag in flags)


def needs_of(text: str) -> list[str]:
    """What the AWS account must allow for a valid file for `ray up`, one sentence each; nothing for other files."""
    try:
        config = yaml.safe_load(text)
        return list(needs_of_nodes(config)) if config["provider"]["type"] == "aws" else []
    except (yaml.YAMLError, *WRONG_TYPE):
        return []  # problems_of says why, or it is a file for KubeRay


def _brackets(text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        if left := list(dict.fromkeys(_BRACKETS.findall(_COMMENT.sub("", line)))):
            values = "value" if len(left) == 1 else "values"
            yield f"Line {number}: replace {' and '.join(left)} with your own {values}."


def _accounts(text: str) -> Iterator[str]:
    """Accounts of AWS with a wrong number of digits."""
    accounts = [number for pair in re.findall(r"\b(\d+)\.dkr\.ecr\.|arn:aws:\w+::(\d+):", text) for number in pair]
    for account in dict.fromkeys(filter(None, accounts)):
        if len(account) != 12:
            yield f"The account {account} has {len(account)} digits. An account of AWS has 12; correct it."


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
    except (*WRONG_TYPE, AssertionError, ImportError, NotImplementedError, RuntimeError) as error:
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


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
