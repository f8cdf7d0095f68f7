"""What the node types of a file for `ray up` must have on AWS, as far as the file alone can say it."""

import re
from collections.abc import Iterator
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
    yield from _places(config)
    types, head = config["available_node_types"], config["head_node_type"]
    for name, node_type in types.items():
        given = node_type.get("node_config") or {}
        missing = [f"{name} has no {key}: {why}." for key, why in REQUIRED.items() if not given.get(key)]
        yield from (f"{sentence} Add it as in the other types." for sentence in missing)
        yield from _resources(name, node_type.get("resources") or {}, given.get("InstanceType", ""))
        profile = given.get("IamInstanceProfile")
        if name != head and profile and profile == (types[head].get("node_config") or {}).get("IamInstanceProfile"):
            yield (
                f"{name} has the IamInstanceProfile of the head, so each job could start machines. "
                "Give it the profile of a worker."
            )


def most_cpus(machine: str) -> int | None:
    """The virtual CPUs that a machine such as `m7i.2xlarge` has at most; None if its name does not say it."""
    size = machine.rpartition(".")[2]
    times = re.fullmatch(r"(\d+)xlarge", size)
    return 4 * int(times[1]) if times else _SMALL.get(size)


def _resources(name: str, resources: dict[str, Any], machine: str) -> Iterator[str]:
    cpus, most = resources.get("CPU", 0), most_cpus(machine)
    if most is not None and cpus > most:
        yield f"{name} declares CPU: {cpus}, but a {machine} has {most}. Change one of the two."
    if resources.get("GPU") and re.match(r"[a-fh-oq-z]", machine):
        yield f"{name} declares GPU: {resources['GPU']}, but a {machine} has no GPU. Change one of the two."


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
