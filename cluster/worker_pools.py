"""The types of worker in a cluster file, for `ray up` or for KubeRay: the most of each, and their CPUs and GPUs."""

from math import ceil
from typing import Any

from cluster.quantity import quantity

WRONG_TYPE = (AttributeError, IndexError, KeyError, TypeError, ValueError)
"""What reading a file raises where a value is, for example, a text instead of a list."""

Pools = list[tuple[int, int, int]]
"""(most workers, CPUs, GPUs) of each type of worker."""


def numbers_of(pools: Pools, *, trains_on_gpus: bool) -> dict[str, int]:
    """The largest values of keys of section `cluster` for (most workers, CPUs, GPUs) of each type of worker."""
    without_gpu = [(most, cpus) for most, cpus, gpus in pools if most and cpus and not gpus]
    of_training = [cpus for most, cpus, gpus in pools if most and gpus] if trains_on_gpus else []
    return {
        "max_actors": sum(most * gpus for most, _, gpus in pools),
        "max_cpu_actors": sum(most * cpus for most, cpus in without_gpu),
        "cpus_per_training_worker": max(of_training or [cpus - 1 for _, cpus in without_gpu], default=0),
    }


def pools_of(document: dict[str, Any]) -> Pools:
    """The types of worker of one document."""
    if "available_node_types" in document:
        types = dict(document["available_node_types"])
        types.pop(document["head_node_type"])
        default = document.get("max_workers", 0)
        return [
            (each.get("max_workers", default), each["resources"].get("CPU", 0), each["resources"].get("GPU", 0))
            for each in types.values()
            if "resources" in each
        ]
    groups = (cluster_spec(document) or {}).get("workerGroupSpecs", [])
    return [(each["maxReplicas"], amount(each, "cpu"), amount(each, "nvidia.com/gpu")) for each in groups]


def cluster_spec(document: dict[str, Any]) -> Any:
    """The part of a RayCluster or RayJob that describes the cluster."""
    spec = document.get("spec") or {}
    return spec.get("rayClusterSpec") if document.get("kind") == "RayJob" else spec


def amount(group: Any, resource: str) -> int:
    """How much of a resource a pod's first container has, as Ray reads it: the limit, else the request, rounded up."""
    resources = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits, requests = (resources.get(key) or {} for key in ("limits", "requests"))
    return ceil(quantity(limits.get(resource, requests.get(resource, 0))))
