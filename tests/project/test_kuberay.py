"""kuberay/: what Ray's own autoscaler reads of the files, and what this project promises of a cluster.

The operator's schema is in no package, so unknown fields would not be found here: `kubectl apply --dry-run=server` on a
cluster with KubeRay finds them. No test here starts a pod.
"""

import copy
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray._private import utils
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import validate_config

from cluster.check_cluster_file import problems_of
from jobs import run_pipeline
from jobs.cli.reference import job_parser_of
from jobs.run.config import resolve_config
from jobs.run.config_keys import Config

ROOT = Path(__file__).resolve().parents[2]
ACCOUNT, CLUSTER = yaml.safe_load_all((ROOT / "kuberay/ray_cluster.yaml").read_text())
JOB = yaml.safe_load((ROOT / "kuberay/ray_job.yaml").read_text())
SPEC: dict[str, Any] = CLUSTER["spec"]
PODS = [SPEC["headGroupSpec"]["template"]["spec"], *(group["template"]["spec"] for group in SPEC["workerGroupSpecs"])]


def test_rays_autoscaler_reads_the_cluster() -> None:
    config = _derive_autoscaling_config_from_ray_cr({**CLUSTER, "metadata": {"name": "ficklenet", "namespace": "ns"}})
    validate_config(config)
    types = config["available_node_types"]
    assert [types[name]["resources"].get("GPU", 0) for name in ("headgroup", "cpu", "gpu")] == [0, 0, 1]
    assert types["headgroup"]["resources"]["CPU"] == 0  # the head computes nothing
    assert [types[name]["min_workers"] for name in ("cpu", "gpu")] == [0, 0]
    assert [types[name]["max_workers"] for name in ("cpu", "gpu")] == [4, 8]
    assert config["idle_timeout_minutes"] == 5


def test_the_job_has_the_cluster_of_the_cluster_file_and_is_tried_again() -> None:
    assert JOB["spec"]["rayClusterSpec"] == SPEC
    assert JOB["spec"]["backoffLimit"] > 0 and JOB["spec"]["shutdownAfterJobFinishes"]
    script, *words = re.findall(r"jobs/(\w+)\.py|cluster\.max_actors=(\d+)", JOB["spec"]["entrypoint"])
    assert (ROOT / "jobs" / f"{script[0]}.py").exists()
    assert int(words[0][1]) == SPEC["workerGroupSpecs"][1]["maxReplicas"]


def documented_jobs() -> list[dict[str, Any]]:
    """The RayJobs of the page: all steps on GPU workers, and on CPU workers alone, whose group of GPUs is deleted."""
    page = (ROOT / "docs/tutorial-kubernetes.md").read_text()
    changes = [yaml.safe_load(block)["spec"] for block in re.findall(r"```yaml\n(.+?)```", page, re.DOTALL)]
    assert len(changes) == 2 and all(each.keys() <= JOB["spec"].keys() for each in changes)
    jobs = [copy.deepcopy(JOB | {"spec": JOB["spec"] | each}) for each in changes]
    del jobs[1]["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    return jobs


def cluster_settings(job: dict[str, Any]) -> Config:
    """The configuration of a job's command, whose flags must exist."""
    python, script, *flags = shlex.split(job["spec"]["entrypoint"])
    assert (python, script) == ("python", "/opt/ficklenet/jobs/run_pipeline.py")
    return resolve_config({}, None, job_parser_of(run_pipeline.main).parse_args(flags).set)


def test_the_documented_jobs_have_flags_and_settings_that_fit_the_pods() -> None:
    assert "WORKDIR /opt/ficklenet" in (ROOT / "Containerfile").read_text()
    on_gpus, on_cpus = map(cluster_settings, documented_jobs())
    sections = (on_gpus.classifier, on_gpus.maps, on_gpus.segmenter, on_gpus.predictions)
    assert [section.device for section in sections] == ["cuda"] * 4 and on_cpus.maps.device == "auto"
    cpu, gpu = SPEC["workerGroupSpecs"]
    cpus = int(cpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"])
    assert on_gpus.cluster.max_actors == gpu["maxReplicas"]
    assert on_gpus.cluster.max_cpu_actors == on_cpus.cluster.max_cpu_actors == cpu["maxReplicas"] * cpus
    assert on_cpus.cluster.cpus_per_training_worker == cpus - 1


@pytest.mark.parametrize("job", documented_jobs())
def test_the_documented_jobs_pass_the_offline_check(job: dict[str, Any]) -> None:
    assert all("replace <" in problem for problem in problems_of(yaml.safe_dump(job)))


def test_pods_have_the_token_the_role_and_no_keys() -> None:
    assert SPEC["authOptions"] == {"mode": "token"} and SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert ":role/ficklenet-worker" in ACCOUNT["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
    assert all(pod["serviceAccountName"] == ACCOUNT["metadata"]["name"] for pod in PODS)
    names = {variable["name"] for pod in PODS for variable in pod["containers"][0]["env"]}
    assert not [name for name in names if "KEY" in name or "TOKEN" in name]


def test_only_the_head_gets_kubernetes_rights() -> None:
    assert [pod.get("automountServiceAccountToken") for pod in PODS] == [None, False, False]


@pytest.mark.parametrize("pod", PODS)
def test_shared_memory_is_larger_than_rays_object_store(pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (volume,) = pod["volumes"]
    shared = gibibytes(volume["emptyDir"]["sizeLimit"])
    memory = gibibytes(pod["containers"][0]["resources"]["limits"]["memory"])
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shared)
    assert utils.resolve_object_store_memory(memory) <= shared


def gibibytes(text: str) -> int:
    return int(text.removesuffix("Gi")) * 2**30


def test_the_image_has_a_user_by_number() -> None:
    """Kubernetes cannot tell by a name that a user is not root."""
    users = re.findall(r"^USER (.+)$", (ROOT / "Containerfile").read_text(), re.MULTILINE)
    assert users and users[-1] == "1000"


SUBMITTER: dict[str, Any] = JOB["spec"]["submitterPodTemplate"]["spec"]
NO_MORE_RIGHTS = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@pytest.mark.parametrize("pod", [*PODS, SUBMITTER])
def test_pods_are_what_the_level_restricted_asks_for(pod: dict[str, Any]) -> None:
    expected = {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["securityContext"] == expected
    assert [container["securityContext"] for container in pod["containers"]] == [NO_MORE_RIGHTS]
    assert SPEC["autoscalerOptions"]["securityContext"] == NO_MORE_RIGHTS


def test_every_container_has_requests_and_limits_of_cpu_memory_and_disk() -> None:
    """Namespaces with quotas refuse pods without them."""
    everything = [pod["containers"][0]["resources"] for pod in [*PODS, SUBMITTER]]
    for resources in [*everything, SPEC["autoscalerOptions"]["resources"]]:
        for amounts in (resources["requests"], resources["limits"]):
            assert amounts.keys() >= {"cpu", "memory", "ephemeral-storage"}


def test_workers_have_disk_for_the_features_that_a_training_keeps() -> None:
    config = resolve_config({}, None, [])
    kept = 1e9 * max(config.classifier.kept_features_gb, config.segmenter.kept_features_gb)
    for pod in PODS[1:]:
        disk = gibibytes(pod["containers"][0]["resources"]["limits"]["ephemeral-storage"])
        assert disk >= kept + 12 * 2**30  # 12 GiB for logs and what Ray spills


def test_workers_are_spot_machines_and_the_head_is_not() -> None:
    assert [pod.get("nodeSelector") for pod in PODS] == [None, *[{"eks.amazonaws.com/capacityType": "SPOT"}] * 2]
    rule = PODS[0]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = rule["nodeSelectorTerms"]  # all its expressions must hold; several terms would be alternatives
    assert {each["key"]: (each["operator"], each["values"]) for each in term["matchExpressions"]} == {
        "eks.amazonaws.com/capacityType": ("NotIn", ["SPOT"]),
        "karpenter.sh/capacity-type": ("NotIn", ["spot"]),
        "cloud.google.com/gke-spot": ("NotIn", ["true"]),
    }


def test_the_head_with_the_driver_is_not_moved_to_save_a_node() -> None:
    assert SPEC["headGroupSpec"]["template"]["metadata"]["annotations"] == {
        "karpenter.sh/do-not-disrupt": "true",
        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    }
    assert all("metadata" not in group["template"] for group in SPEC["workerGroupSpecs"])


def test_the_network_policy_lets_only_the_namespace_and_the_operator_in() -> None:
    policy = yaml.safe_load((ROOT / "kuberay/network_policy.yaml").read_text())["spec"]
    assert policy["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    ((rule,), kinds) = policy["ingress"], policy["policyTypes"]
    assert kinds == ["Ingress"] and rule.keys() == {"from"}
    pods, operator = rule["from"]
    assert pods == {"podSelector": {}}  # without a namespaceSelector: of its own namespace
    assert operator["namespaceSelector"]["matchLabels"].keys() == {"kubernetes.io/metadata.name"}


def test_the_documented_trust_is_for_the_service_account_of_the_file() -> None:
    (block,) = re.findall(r"```json\n(.+?)```", (ROOT / "docs/tutorial-kubernetes.md").read_text(), re.DOTALL)
    (statement,) = json.loads(block)["Statement"]
    assert statement["Action"] == "sts:AssumeRoleWithWebIdentity"
    (subject,) = [value for key, value in statement["Condition"]["StringEquals"].items() if key.endswith(":sub")]
    assert subject == f"system:serviceaccount:<namespace>:{ACCOUNT['metadata']['name']}"


@pytest.mark.parametrize("pod", PODS)
def test_versions_are_those_of_the_project(pod: dict[str, Any]) -> None:
    version = pod["containers"][0]["image"].rsplit(":", 1)[1]
    assert f'version = "{version}"' in (ROOT / "pyproject.toml").read_text()
    assert f"ray=={SPEC['rayVersion']}" in (ROOT / "constraints.txt").read_text()
