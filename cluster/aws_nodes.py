"""What the node types of a file for `ray up` must have on AWS, as far as the file alone can say it."""

import difflib
import json
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

REQUIRED = {
    "SecurityGroupIds": "Ray would make a group of its own, with SSH open to the whole world",
    "SubnetIds": "Ray would take any subnet of the network, also one that gives the node a public address",
    "IamInstanceProfile": "Ray would give the head a role with all rights on EC2 and S3, and workers none",
}
"""What each node type needs on AWS, and what happens without it in Ray 2.60."""

_SMALL = {"nano": 2, "micro": 2, "small": 2, "medium": 2, "large": 2, "xlarge": 4}
"""The most virtual CPUs of a machine of each size; `4xlarge` has four times those of `xlarge`."""


def problems_of_nodes(config: dict[str, Any]) -> Iterator[str]:
    """Node types that miss a key or declare what their machine cannot have, and places that do not fit together."""
    yield from _provider_keys(config["provider"])
    yield from _places(config)
    types, head = config["available_node_types"], config["head_node_type"]
    for name, node_type in types.items():
        given = node_type.get("node_config") or {}
        missing = [f"{name} has no {key}: {why}." for key, why in REQUIRED.items() if not given.get(key)]
        yield from (f"{sentence} Add it as in the other types." for sentence in missing)
        yield from (f"{name}: {sentence}" for sentence in _parameters(given))
        resources, machine = node_type.get("resources") or {}, given.get("InstanceType", "")
        yield from _machine(name, machine)
        yield from _declared(name, resources, machine, is_head=name == head)
        yield from _resources(name, resources, machine)
        profile = given.get("IamInstanceProfile")
        if ":role/" in str(profile):
            yield f"{name} has a role as IamInstanceProfile. Give the instance profile: ...:instance-profile/NAME."
        if name != head and profile and profile == (types[head].get("node_config") or {}).get("IamInstanceProfile"):
            yield (
                f"{name} has the IamInstanceProfile of the head, so each job could start machines. "
                "Give it the profile of a worker."
            )


def _parameters(node_config: dict[str, Any]) -> Iterator[str]:
    """Names and types that EC2's call RunInstances does not know."""
    from botocore.validate import ParamValidator

    given = {"MinCount": 1, "MaxCount": 1, **node_config}
    if not isinstance(given.pop("SubnetIds", []), list):  # a key of Ray, not of EC2
        yield "SubnetIds is not a list. Write [subnet-...]."
    for line in filter(None, ParamValidator().validate(given, _run_instances()).generate_report().split("\n")):
        unknown = re.fullmatch(r'Unknown parameter in (\S+): "(\w+)", must be one of: (.+)', line)
        if unknown:
            place, name, known = unknown.groups()
            near = difflib.get_close_matches(name, known.split(", "), n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]}?" if near else f"EC2 knows {known}."
            line = f"{'' if place == 'input' else f'{place}.'}{name}: unknown key. {hint}"
        yield line
    yield from _choices(given, _run_instances(), "")
    image = str(given.get("ImageId") or "")
    if image and not re.match(r"ami-|resolve:ssm:|<", image):
        yield f"ImageId is {image}. Write the id of a machine image, which begins with ami-."


def _choices(value: Any, shape: Any, place: str) -> Iterator[str]:
    """Values that are none of those that EC2 knows, such as MarketType Spot. New machine types are not in the list."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key in sorted(value.keys() & shape.members.keys() - {"InstanceType"}):
            yield from _choices(value[key], shape.members[key], f"{place}.{key}".removeprefix("."))
    elif shape.type_name == "list" and isinstance(value, list):
        for each in value:
            yield from _choices(each, shape.member, place)
    elif isinstance(value, str) and getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{place} is {value}, allowed: {', '.join(shape.enum)}."


@cache
def _run_instances() -> Any:
    """The parameters of EC2's call RunInstances, from the description of EC2 in botocore."""
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _provider_keys(provider: dict[str, Any]) -> Iterator[str]:
    """Keys that are nearly one of Ray's; others are allowed, and Ray's schema does not refuse them."""
    schema = json.loads((files("ray.autoscaler") / "ray-schema.json").read_text())
    known = schema["properties"]["provider"]["properties"]
    for key in provider.keys() - known.keys():
        if near := difflib.get_close_matches(key, known, n=1, cutoff=0.8):
            yield f"provider.{key}: unknown key. Did you mean {near[0]}?"


def most_cpus(machine: str) -> int | None:
    """The virtual CPUs that a machine such as `m7i.2xlarge` has at most; None if its name does not say it."""
    size = machine.rpartition(".")[2]
    times = re.fullmatch(r"(\d+)xlarge", size)
    return 4 * int(times[1]) if times else _SMALL.get(size)


def _most_gpus(machine: str) -> int | None:
    """The GPUs that a machine such as `g6.xlarge` has at most; None if its name does not say it."""
    if re.match(r"[a-fh-oq-z]", machine):
        return 0
    usual = re.fullmatch(r"(g4dn|g5|g6|g6e)\.(\d*)xlarge", machine)
    return {"12": 4, "24": 4, "48": 8}.get(usual[2], 1) if usual else None


def needs_float32(config: dict[str, Any]) -> bool:
    """Whether a type of worker has a T4, which does not compute in bfloat16."""
    types = (config.get("available_node_types") or {}).values()
    return any(str((each.get("node_config") or {}).get("InstanceType")).startswith("g4dn.") for each in types)


def needs_of_nodes(config: dict[str, Any]) -> Iterator[str]:
    """The machine types that the policy of the head must allow, and the quotas of all nodes together, in vCPUs."""
    types, head = config["available_node_types"], config["head_node_type"]
    machines = {name: str((each.get("node_config") or {}).get("InstanceType", "")) for name, each in types.items()}
    if workers := ", ".join(sorted({machine for name, machine in machines.items() if name != head})):
        yield f"The policy of the head must allow these machines (ec2:InstanceType): {workers}."
    quotas = dict[str, int]()
    for name, each in types.items():
        options = (each.get("node_config") or {}).get("InstanceMarketOptions") or {}
        is_spot, family = options.get("MarketType") == "spot", machines[name][:1]
        kind = "G and VT" if family in "gv" else "Standard" if family in "acdhimrtz" else f"{family.upper()}"
        quota = f"All {kind} Spot Instance Requests" if is_spot else f"Running On-Demand {kind} instances"
        number = 1 if name == head else min(each.get("max_workers", config["max_workers"]), config["max_workers"])
        quotas[quota] = quotas.get(quota, 0) + number * (most_cpus(machines[name]) or 0)
    in_words = ", ".join(f'{cpus} of "{quota}"' for quota, cpus in quotas.items() if cpus)
    yield f"Quotas in vCPUs, if all nodes run: {in_words}."


def _machine(name: str, machine: str) -> Iterator[str]:
    family, _, size = machine.partition(".")
    if re.match(r"[a-z]+\d+g", family):  # Graviton, as in c7g, m8gd and g5g
        yield f"{name}: the processor of a {machine} is ARM, but the image of this project is for x86. Change it."
    if re.fullmatch(r"g2|g3s?|g4ad|p2|p3|p3dn", family):
        yield f"{name}: CUDA 13, which the image has, does not support the GPUs of a {machine}. Take g4dn, g5 or newer."
    if size and size not in _SMALL and not re.fullmatch(r"\d+xlarge|metal(-\d+xl)?", size):
        yield f"{name}: InstanceType {machine} has no size that AWS knows, such as xlarge or 2xlarge."


def _declared(name: str, resources: dict[str, Any], machine: str, *, is_head: bool) -> Iterator[str]:
    """Resources that are missing or misspelt: Ray would ask AWS for them, or take them as ones of the user's own."""
    for key in resources:
        if key not in ("CPU", "GPU") and key.upper().rstrip("S") in ("CPU", "GPU"):
            yield f"{name} declares {key}, which Ray takes as a resource of your own. Write {key.upper().rstrip('S')}."
            return
    if "CPU" not in resources:
        why = "so work would run on the head too" if is_head else "so the settings of a job cannot be computed"
        yield f"{name} declares no CPU, {why}. Write CPU: {0 if is_head else most_cpus(machine) or 'and their number'}."
    elif "GPU" not in resources and not is_head and _most_gpus(machine):
        yield f"{name} declares no GPU, but a {machine} has {_most_gpus(machine)}. Write their number."


def _resources(name: str, resources: dict[str, Any], machine: str) -> Iterator[str]:
    cpus, most = resources.get("CPU", 0), most_cpus(machine)
    if most is not None and cpus > most:
        yield f"{name} declares CPU: {cpus}, but a {machine} has {most}. Change one of the two."
    elif most is not None and 0 < 2 * cpus <= most and not resources.get("GPU"):
        yield f"{name} declares CPU: {cpus}, but a {machine} has {most}, so most would not be used. Change one."
    gpus, most_gpus = resources.get("GPU", 0), _most_gpus(machine)
    if most_gpus is not None and gpus > most_gpus:
        yield f"{name} declares GPU: {gpus}, but a {machine} has {most_gpus or 'no GPU'}. Change one of the two."
    elif most_gpus is not None and 0 < gpus < most_gpus:
        yield f"{name} declares GPU: {gpus}, but a {machine} has {most_gpus}, so some would not be used. Change one."


def _places(config: dict[str, Any]) -> Iterator[str]:
    region = config["provider"].get("region")
    if not region:
        yield "provider.region is missing. Write the region of your bucket."
        return
    zones = config["provider"].get("availability_zone") or ""
    for zone in filter(None, (each.strip() for each in zones.split(","))):
        if not zone.startswith(region) or zone == region:
            yield f"The availability_zone {zone!r} is not in {region}, whose zones are {region}a and so on."
    for option in (config.get("docker") or {}).get("run_options") or []:
        given = re.search(r"AWS_DEFAULT_REGION=(\S+)", option)
        if given and given[1] != region:
            yield f"docker.run_options has AWS_DEFAULT_REGION={given[1]}, but provider.region is {region}. Change one."
