"""The offline check of a user's own cluster file: the shipped files pass, and each mistake is one sentence."""

import copy
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.check_cluster_file import compared_with_shipped, job_settings_of, main, needs_of, problems_of
from cluster.shipped_file import DATA, FILES, differences_of, shipped_files

ROOT = Path(__file__).resolve().parents[2]


VALUES = {
    "account": "123456789012",
    "region": "eu-central-1",
    "bucket": "my-bucket",
    "security-group": "sg-0123456789abcdef0",
    "private-subnet-a": "subnet-0123456789abcdef0",
    "private-subnet-b": "subnet-1123456789abcdef0",
    "ami-with-docker": "ami-0123456789abcdef0",
    "ami-with-docker-and-nvidia": "ami-1123456789abcdef0",
    "namespace-of-the-kuberay-operator": "kuberay-operator",
}


def filled(name: str) -> str:
    """A shipped file with a value in the place of each angle bracket."""
    return re.sub(r"<([a-z-]+)>", lambda found: VALUES[found[1]], (ROOT / name).read_text())


def changed(name: str, change: Callable[[dict[str, Any]], object]) -> str:
    """A filled file whose last document was edited."""
    documents = list(yaml.safe_load_all(filled(name)))
    documents[-1] = copy.deepcopy(documents[-1])  # not the anchors' shared parts
    change(documents[-1])
    return yaml.safe_dump_all(documents, sort_keys=False)


@pytest.mark.parametrize("name", FILES)
def test_the_shipped_files_have_no_problem_but_their_brackets(name: str) -> None:
    assert problems_of(filled(name)) == []
    assert compared_with_shipped(filled(name)) == (name, [])
    assert compared_with_shipped((ROOT / name).read_text()) == (name, [])
    left = problems_of((ROOT / name).read_text())
    lines = (ROOT / name).read_text().splitlines()
    assert left
    for sentence in left:
        number, brackets = re.fullmatch(r"Line (\d+): replace (.+) with your own values?\.", sentence).groups()  # type: ignore[union-attr]
        assert all(each in lines[int(number) - 1] for each in brackets.split(" and "))


def test_types_of_nodes_may_be_added_and_removed() -> None:
    def cpus_alone(config: dict[str, Any]) -> None:
        types = config["available_node_types"]
        del types["gpu_worker"]
        larger = types["cpu_worker"]["node_config"] | {"InstanceType": "m7i.4xlarge"}
        resources = {"CPU": 16, "GPU": 0}
        types["large"] = {"resources": resources, "min_workers": 0, "max_workers": 2, "node_config": larger}

    text = changed("ray_cluster.yaml", cpus_alone)
    assert problems_of(text) == [] and compared_with_shipped(text)[1] == []
    cpus = "--set cluster.max_cpu_actors=64 --set cluster.cpus_per_training_worker=15"
    assert job_settings_of(text) == f"--set cluster.autoscaling=true {cpus}"


def test_what_the_account_must_allow_is_that_of_the_tutorial_and_of_other_machines() -> None:
    tutorial = (ROOT / "docs/tutorial-aws.md").read_text()
    machines, quotas = needs_of(filled("ray_cluster.yaml"))
    assert machines.endswith("(ec2:InstanceType): g6.xlarge, m7i.2xlarge.")
    assert '"ec2:InstanceType": ["m7i.2xlarge", "g6.xlarge"]' in tutorial
    assert quotas == (
        'Quotas in vCPUs, if all nodes run: 4 of "Running On-Demand Standard instances", 32 of "All Standard Spot '
        'Instance Requests", 32 of "All G and VT Spot Instance Requests".'
    )
    assert '32 of "All G and VT Spot Instance Requests" (8 g6.xlarge)' in tutorial

    def other(config: dict[str, Any]) -> None:
        gpu_worker = config["available_node_types"]["gpu_worker"]
        gpu_worker["max_workers"] = 16
        gpu_worker["node_config"].update(InstanceType="g5.2xlarge")
        del gpu_worker["node_config"]["InstanceMarketOptions"]

    machines, quotas = needs_of(changed("ray_cluster.yaml", other))
    assert "g5.2xlarge, m7i.2xlarge" in machines and '96 of "Running On-Demand G and VT instances"' in quotas  # 12 x 8
    assert needs_of(filled("kuberay/ray_job.yaml")) == needs_of("[") == []


def test_one_machine_image_for_types_with_and_without_gpus_is_named() -> None:
    def same(config: dict[str, Any]) -> None:
        types = config["available_node_types"]
        types["gpu_worker"]["node_config"]["ImageId"] = types["head"]["node_config"]["ImageId"]

    (line,) = compared_with_shipped(changed("ray_cluster.yaml", same))[1]
    assert line.endswith("gpu_worker.node_config.ImageId needs one with NVIDIA's driver")


def test_the_settings_of_a_job_for_a_t4_have_the_precision_that_it_needs() -> None:
    text = filled("ray_cluster.yaml")
    four = [f"--set {step}.precision=float32" for step in ("classifier", "maps", "segmenter", "predictions")]
    assert "precision" not in job_settings_of(text)
    assert job_settings_of(text.replace("g6.xlarge", "g4dn.xlarge")).endswith(" ".join(four))


def node(config: dict[str, Any]) -> dict[str, Any]:
    return config["available_node_types"]["cpu_worker"]


def head(config: dict[str, Any]) -> dict[str, Any]:
    return {"IamInstanceProfile": config["available_node_types"]["head"]["node_config"]["IamInstanceProfile"]}


def replace(commands: list[str], text: str, by: str) -> None:
    commands[:] = [each.replace(text, by) for each in commands]


def without_docker(config: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in config["available_node_types"]["gpu_worker"].items() if key != "docker"}


def group(job: dict[str, Any], number: int = 1) -> dict[str, Any]:
    return job["spec"]["rayClusterSpec"]["workerGroupSpecs"][number]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: node(c)["node_config"].pop("SecurityGroupIds"), "cpu_worker has no SecurityGroupIds: .* SSH open"),
        (lambda c: node(c)["node_config"].update(SubnetIds=[]), "cpu_worker has no SubnetIds: .* public address"),
        (lambda c: node(c)["node_config"].pop("IamInstanceProfile"), "cpu_worker has no IamInstanceProfile"),
        (lambda c: c.update(head_node_type="haed"), "head_node_type is 'haed', but .* has .*cpu_worker"),
        (lambda c: c.update(idle_timeout=5), "Ray's schema, at the top level: .*'idle_timeout'"),
        (lambda c: node(c).update(max_workers="4"), "Ray's schema, at available_node_types.cpu_worker.max_workers"),
        (lambda c: node(c).update(max_workers=20), "max_workers 20, but max_workers of the whole cluster is 12"),
        (lambda c: node(c).update(min_workers=5), "min_workers 5 and max_workers 4"),
        (lambda c: [t.update(max_workers=0) for t in c["available_node_types"].values()], "no worker comes"),
        (lambda c: c["docker"]["run_options"].pop(0), "RAY_AUTH_MODE=token"),
        (
            lambda c: node(c)["node_config"].update(InstanceTyp="m7i.2xlarge"),
            "cpu_worker: InstanceTyp: unknown key. Did you mean InstanceType",
        ),
        (
            lambda c: node(c)["node_config"].update(InstanceMarketOptions={"MarketTyp": "spot"}),
            r"cpu_worker: InstanceMarketOptions\.MarketTyp: unknown key. Did you mean MarketType",
        ),
        (lambda c: node(c)["node_config"].update(SubnetIds="subnet-1"), "cpu_worker: SubnetIds is not a list"),
        (
            lambda c: node(c)["node_config"].update(InstanceMarketOptions={"MarketType": "Spot"}),
            r"cpu_worker: InstanceMarketOptions\.MarketType is Spot, allowed: spot, ",
        ),
        (
            lambda c: node(c)["node_config"]["BlockDeviceMappings"][0]["Ebs"].update(VolumeType="ssd"),
            r"cpu_worker: BlockDeviceMappings\.Ebs\.VolumeType is ssd, allowed: .*gp3",
        ),
        (
            lambda c: node(c)["node_config"].update(ImageId="my-image"),
            "cpu_worker: ImageId is my-image. Write the id of",
        ),
        (
            lambda c: c["docker"].update(image="12345678901.dkr.ecr.eu-central-1.amazonaws.com/ficklenet:1"),
            "The account 12345678901 has 11 digits. An account of AWS has 12",
        ),
        (
            lambda c: node(c)["node_config"].update(BlockDeviceMappings=[{"Ebs": {"VolumeSize": "96"}}]),
            r"cpu_worker: Invalid type for parameter BlockDeviceMappings\[0\]\.Ebs\.VolumeSize",
        ),
        (
            lambda c: c["provider"].update(use_internal_ip=True),
            r"provider\.use_internal_ip: unknown key. Did you mean use_internal_ips",
        ),
        (
            lambda c: node(c)["node_config"].update(InstanceType="c7g.2xlarge"),
            r"cpu_worker: the processor of a c7g\.2xlarge is ARM",
        ),
        (
            lambda c: node(c)["node_config"].update(InstanceType="m7i.2xlage"),
            r"cpu_worker: InstanceType m7i\.2xlage has no size that AWS knows",
        ),
        (lambda c: node(c).update(resources={}), r"cpu_worker declares no CPU, so the settings .*\. Write CPU: 8\.$"),
        (lambda c: node(c).update(resources={"cpu": 8}), r"declares cpu, which Ray takes as .* own\. Write CPU\.$"),
        (
            lambda c: c["available_node_types"]["gpu_worker"].update(resources={"CPU": 4}),
            r"gpu_worker declares no GPU, but a g6\.xlarge has 1",
        ),
        (
            lambda c: c["available_node_types"][c["head_node_type"]].update(resources={}),
            r"declares no CPU, so work would run on the head too\. Write CPU: 0\.$",
        ),
        (lambda c: node(c)["resources"].update(CPU=16), "declares CPU: 16, but a m7i.2xlarge has 8"),
        (lambda c: node(c)["node_config"].update(InstanceType="m7i.large"), "declares CPU: 8, but a m7i.large has 2"),
        (
            lambda c: node(c).update(resources={"CPU": 8, "GPU": 1}, docker={"worker_run_options": ["--gpus all"]}),
            "declares GPU: 1, but a m7i.2xlarge has no GPU",
        ),
        (
            lambda c: c["available_node_types"]["gpu_worker"]["resources"].update(GPU=4),
            "declares GPU: 4, but a g6.xlarge has 1",
        ),
        (
            lambda c: c["available_node_types"]["gpu_worker"]["node_config"].update(InstanceType="g6.12xlarge"),
            "declares GPU: 1, but a g6.12xlarge has 4, so some would not be used",
        ),
        (
            lambda c: c["available_node_types"]["gpu_worker"]["node_config"].update(InstanceType="p3.2xlarge"),
            "CUDA 13, which the image has, does not support the GPUs of a p3.2xlarge",
        ),
        (lambda c: node(c)["resources"].update(CPU=4), "declares CPU: 4, but a m7i.2xlarge has 8, so most"),
        (lambda c: c.update(file_mounts={}), "no /home/ray/.ray/auth_token, so the nodes would have no token"),
        (
            lambda c: node(c)["node_config"].update(
                IamInstanceProfile={"Arn": "arn:aws:iam::123456789012:role/worker"}
            ),
            "cpu_worker has a role as IamInstanceProfile",
        ),
        (lambda c: node(c)["node_config"].update(head(c)), "cpu_worker has the IamInstanceProfile of the head"),
        (lambda c: c["provider"].pop("region"), "provider.region is missing"),
        (
            lambda c: c["provider"].update(availability_zone="eu-central-1a, eu-west-1b"),
            "'eu-west-1b' is not in eu-central-1",
        ),
        (lambda c: c["docker"]["run_options"].append("--env AWS_DEFAULT_REGION=x"), "AWS_DEFAULT_REGION=x, but"),
        (lambda c: replace(c["head_start_ray_commands"], "127.0.0.1", "0.0.0.0"), "dashboard to the"),
        (
            lambda c: c.update(file_mounts={"/home/ubuntu/.ray/auth_token": "~/.ray/auth_token"}),
            "token at /home/ubuntu/.ray/auth_token, but the nodes read it at /home/ray/.ray/auth_token",
        ),
        (
            lambda c: c["docker"]["run_options"].append("--env RAY_AUTH_TOKEN_PATH=/opt/token"),
            "token at /home/ray/.ray/auth_token, but the nodes read it at /opt/token",
        ),
        (
            lambda c: replace(c["head_start_ray_commands"], "--autoscaling-config=~/ray_bootstrap_config.yaml", ""),
            "no --autoscaling-config, so no worker would come",
        ),
        (
            lambda c: replace(c["worker_start_ray_commands"], "6379", "6380"),
            "The head listens on port 6379, but the workers join port 6380",
        ),
        (
            lambda c: c["available_node_types"].update(gpu_worker_t4=without_docker(c)),
            "gpu_worker_t4 declares GPUs, but its container would see none",
        ),
        (lambda c: c.pop("provider"), r"provider\.type is missing"),
        (lambda c: c.update(available_node_types=["head"]), "available_node_types must name"),
    ],
)
def test_a_mistake_in_a_file_for_ray_up_is_one_sentence(change: Callable[..., object], sentence: str) -> None:
    (problem,) = problems_of(changed("ray_cluster.yaml", change))
    assert re.search(sentence, problem)


def resources(job: Any) -> Any:
    return group(job)["template"]["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda j: j["spec"].update(entrypoint="run --set cluster.autoscaling=true --set cluster.max_cpu_actors=32"),
            "=32, but the groups allow 28",
        ),
        (
            lambda j: j["spec"].update(
                entrypoint="run --set cluster.autoscaling=true --set cluster.cpus_per_training_worker=7"
            ),
            "cpus_per_training_worker=7, but the groups allow 6",
        ),
        (
            lambda j: j["spec"].update(
                entrypoint=j["spec"]["entrypoint"] + " --set classifier.device=cuda "
                "--set cluster.cpus_per_training_worker=6"
            ),
            "cpus_per_training_worker=6, but the groups allow 3|has room for 0|have room for 0",
        ),
        (
            lambda j: j["spec"].update(entrypoint="run --set cluster.autoscaling=true --restart maps"),
            "Set backoffLimit to 0",
        ),
        (
            lambda j: j["spec"].update(
                entrypoint="run --set cluster.autoscaling=true --set cluster.training_workers=6 "
                "--set cluster.cpus_per_training_worker=6"
            ),
            "The job trains with 6 workers of 6 CPUs, but the groups have room for 4",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("--set maps.device=cuda", "")),
            r"does not set maps\.device\. .* Add --set maps\.device=cuda, or cpu",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("generate_maps", "run_pipeline")),
            r"not set classifier\.device and segmenter\.device and predictions\.device\. .* Add "
            r"--set classifier\.device=cuda --set segmenter\.device=cuda --set predictions\.device=cuda, or cpu",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("device=cuda", "device=gpu")),
            r"refuses its flags or settings: .*maps\.device: given 'gpu', allowed: 'auto', 'cpu' or 'cuda'",
        ),
        *(
            (
                lambda j, weights=weights: j["spec"].update(
                    entrypoint=j["spec"]["entrypoint"] + f" --set classifier.weights={weights}"
                ),
                f"has classifier.weights={weights}, which is neither on S3 nor in the image",
            )
            for weights in ("s3:/bucket/a.pth", "bucket/runs/a.pth", "a.safetensors", "/data/a.pt")
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " --dry-run"),
            "times the steps where the driver runs, .* Write entrypointNumGpus: 1",
        ),
        (
            lambda j: [
                j["spec"]["rayClusterSpec"]["workerGroupSpecs"].pop(),
                j["spec"].update(
                    entrypoint=j["spec"]["entrypoint"].split(" --set cluster.max_actors")[0] + " --dry-run",
                    entrypointNumGpus=1,
                ),
            ],
            "Write entrypointNumCpus: 1",
        ),
        (
            lambda j: [
                resources(j)["limits"].update({"nvidia.com/gpus": "1"}),
                j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("s3://", "/")),
            ],
            r"has the resource nvidia\.com/gpus|a folder of one pod",  # both at once
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("--run ", "--rnu ")),
            "has no --run, the place of the run",
        ),
        (lambda j: j["spec"].pop("entrypoint"), "no entrypoint"),
        (
            lambda j: j["spec"].update(entrypoint="run --run /runs/mine --set cluster.autoscaling=true"),
            "--run /runs/mine, a folder of one pod",
        ),
        (
            lambda j: j["spec"].update(entrypoint="run --run https://bucket/runs/a --set cluster.autoscaling=true"),
            r"--run https://bucket/runs/a, which is no place for a run\. Give s3://bucket/run\.",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("generate_maps", "generate_map")),
            "runs /opt/ficklenet/jobs/generate_map.py, and this project has no such script",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("autoscaling=true", "x=1")),
            "no --set cluster.autoscaling=true",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("/jobs/", "/")),
            r"runs /opt/ficklenet/generate_maps\.py, but in the image .* it is /opt/ficklenet/jobs/generate_maps\.py",
        ),
        (
            lambda j: j["spec"]["submitterPodTemplate"]["spec"]["containers"][0].update(image="other:1"),
            "images 123456789012.* and other:1. All of them must have the same one",
        ),
        (
            lambda j: group(j)["template"]["spec"]["containers"][0].update(image="other:2"),
            "images 123456789012.* and other:2. All of them must have the same one",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("s3://", "s3:/")),
            r"--run s3:/.*, which is no place for a run",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("s3://", "s3//")),
            r"--run s3//.*, which is no place for a run",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("s3://", "")),
            r"--run my-bucket.*, a folder of one pod",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace(" --set", " \\ --set", 1)),
            "has a backslash at the end of a line",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " --config /home/me/own.toml"),
            r"--config /home/me/own\.toml, which is not in the pods",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " --config own.toml"),
            r"refuses its flags or settings: .*--config own\.toml: no such file",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"].replace("max_actors", "max_actor")),
            r"cluster\.max_actor: unknown key\. Did you mean cluster\.max_actors",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " --shrad 1/4"),
            "--shrad: unknown argument. Did you mean --shard",
        ),
        (
            lambda j: j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " 'x"),
            r"no command of a shell \(No closing quotation\)",
        ),
        (lambda j: j["spec"]["rayClusterSpec"].update(enableInTreeAutoscaling=False), "the autoscaler is off"),
        (lambda j: group(j).update(groupName="cpu"), "Several groups have the name cpu"),
        (
            lambda j: [each.pop("nvidia.com/gpu", "") for each in resources(j).values()],
            "group gpu may run on nodes with GPUs .its toleration., but asks for none|allow 0|no group has GPUs",
        ),
        (
            lambda j: [each.update({"nvidia.com/gpus": "1"}) for each in resources(j).values()],
            r"has the resource nvidia\.com/gpus, which no node has\. Write nvidia\.com/gpu\.",
        ),
        (
            lambda j: resources(j).update(limits={"cpu": "3", "memory": "14Gi"}),
            "requests nvidia.com/gpu without a limit",
        ),
        (
            lambda j: resources(j).update(requests={"cpu": "3", "memory": "28", "nvidia.com/gpu": "1"}),
            "has memory: 28, which is 28 bytes. Write a unit|requests memory: 28, but its limit is 14Gi",
        ),
        (lambda j: group(j).update(groupName="cpu_worker"), "The name cpu_worker becomes a part of the pods' names"),
        (
            lambda j: group(j)["template"]["spec"]["volumes"][0]["emptyDir"].update(sizeLimit="1Gi"),
            "has sizeLimit 1Gi for the shared memory, less than 30 % of the pod's memory",
        ),
        (lambda j: group(j).update(maxReplicas=0), "the groups allow 0|no group has GPUs"),
        (
            lambda j: [
                j["spec"]["rayClusterSpec"]["workerGroupSpecs"].pop(),
                j["spec"].update(entrypoint=j["spec"]["entrypoint"] + " --set classifier.device=cuda"),
            ],
            "the groups allow 0|no group has GPUs",
        ),
        (lambda j: group(j).pop("maxReplicas"), "group gpu has no maxReplicas"),
        (lambda j: group(j)["template"]["spec"].pop("containers"), "group gpu needs template.spec.containers"),
        (lambda j: group(j)["template"]["spec"]["containers"][0].pop("image"), "group gpu has no image"),
        (
            lambda j: group(j)["template"]["spec"]["containers"][0].pop("resources"),
            "no resources.requests.cpu|may run on nodes with GPUs",
        ),
        (lambda j: j["spec"]["rayClusterSpec"].pop("authOptions"), "mode: token"),
        (lambda j: j["spec"]["rayClusterSpec"].pop("rayVersion"), "no rayVersion"),
        (
            lambda j: j["spec"]["rayClusterSpec"].update(rayVersion="2.9.0"),
            "has rayVersion 2.9.0, but .* must be equal",
        ),
        (lambda j: group(j)["template"]["spec"]["containers"][0].pop("volumeMounts"), "gpu has no volume at /dev/shm"),
        (lambda j: j.update(kind="RayJobs"), r"kind is RayJobs\. Write RayCluster or RayJob"),
        (
            lambda j: resources(j).update(requests={"cpu": "3", "memory": "1.5Ti"}),
            "group gpu requests memory: 1.5Ti, but its limit is",
        ),
        (
            lambda j: resources(j).update(limits={"cpu": "500m"}),
            "group gpu requests cpu: .*, but its limit is 500m|without a limit",
        ),
        (
            lambda j: resources(j).update(limits={**resources(j)["limits"], "cpu": "15"}),
            "group gpu requests cpu: 3, but its limit is 15. Ray would use the limit",
        ),
        (lambda j: resources(j)["limits"].update(memory="12 GB"), "'12 GB' is no amount of Kubernetes; write for"),
        (lambda j: j["spec"].pop("rayClusterSpec"), "no spec.rayClusterSpec"),
        (lambda j: group(j).update(maxReplicas="8"), "group gpu has maxReplicas: '8'. Write a whole number"),
        (
            lambda j: j["spec"].update(activeDeadlineSeconds="12h"),
            "RayJob has activeDeadlineSeconds: '12h'. Write a whole",
        ),
    ],
)
def test_a_mistake_in_a_file_for_kuberay_is_a_sentence(change: Callable[..., object], sentence: str) -> None:
    problems = problems_of(changed("kuberay/ray_job.yaml", change))
    assert problems and all(re.search(sentence, problem) for problem in problems)


@pytest.mark.parametrize("weights", ["s3://bucket/a.pth", "imagenet", "package:a_package", "/opt/ficklenet/a.pth"])
def test_weights_that_the_pods_can_read_are_no_problem(weights: str) -> None:
    def with_weights(job: dict[str, Any]) -> None:
        job["spec"]["entrypoint"] += f" --set classifier.weights={weights}"

    assert problems_of(changed("kuberay/ray_job.yaml", with_weights)) == []


def test_the_package_has_the_content_of_the_shipped_files() -> None:
    assert DATA.read_text() == shipped_files(), "run: python -m cluster.shipped_file"


def test_what_the_pages_let_users_choose_is_no_difference() -> None:
    def on_aws(config: dict[str, Any]) -> None:
        types = config["available_node_types"]
        types["gpu_worker_t4"] = copy.deepcopy(types["gpu_worker"])  # docs/tutorial-aws.md, T4 and L4
        types["gpu_worker_t4"]["node_config"]["InstanceType"] = "g4dn.xlarge"
        types["gpu_worker_t4"]["node_config"]["SubnetIds"].pop()
        types["cpu_worker"]["node_config"]["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] = 200
        types["chief"] = types.pop("head")
        config.update(cluster_name="second", head_node_type="chief", max_workers=40, upscaling_speed=1)
        config["docker"]["image"] = config["docker"]["image"].replace(":0.1.0", "@sha256:0123")

    def on_kubernetes(job: dict[str, Any]) -> None:
        for number in (0, 1):
            pod = group(job, number)["template"]["spec"]
            pod["nodeSelector"] = {"karpenter.sh/capacity-type": "spot"}
            pod["containers"][0]["resources"]["limits"].update(memory="56Gi")
        job["spec"].update(backoffLimit=0, entrypointNumCpus=1, activeDeadlineSeconds=86400)
        job["metadata"]["namespace"] = "maps"

    for name, change in (("ray_cluster.yaml", on_aws), ("kuberay/ray_job.yaml", on_kubernetes)):
        assert compared_with_shipped(changed(name, change)) == (name, [])


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of each key and element below a value."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*at, key)
        if isinstance(each, (dict, list)):
            yield from places(each, (*at, key))


@pytest.mark.parametrize("name", FILES)
def test_each_line_that_is_deleted_or_changed_is_named_unless_users_choose_it(name: str) -> None:
    documents = list(yaml.safe_load_all(filled(name)))
    deleted, altered = set(), set()
    counts = {"max_workers", "min_workers", "upscaling_speed", "idle_timeout_minutes", "CPU", "GPU", "VolumeSize"}
    counts |= {"minReplicas", "maxReplicas", "idleTimeoutSeconds", "backoffLimit"}
    for place in places(documents):
        *above, last = place
        for unnoticed in (deleted, altered):
            edited = json.loads(json.dumps(documents))  # without the anchors' shared parts
            parent = reduce(lambda value, key: value[key], above, edited)
            if unnoticed is altered and isinstance(parent[last], (dict, list)):
                continue
            if unnoticed is deleted:
                del parent[last]
            else:
                value = parent[last]
                parent[last] = (
                    not value if isinstance(value, bool) else value + 1 if last in counts else f"{value} other"
                )
            if edited and not differences_of(edited)[1]:
                unnoticed.add(last)
    of_lists = {0, 1}  # node groups of KubeRay; all subnets but one
    assert deleted <= {"head", "cpu_worker", "gpu_worker"} | of_lists  # without a head there is a problem
    assert altered <= counts | {"availability_zone", "entrypoint", "rayVersion"}  # read by the check itself


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: replace(c["head_start_ray_commands"], "cpus=0", "cpus=4"), r"\.*: \"--num-cpus=4\"; .*cpus=0"),
        (
            lambda c: c["docker"]["run_options"].append("--shm-size 64m"),
            r'docker\.run_options: added: "--shm-size 64m"',
        ),
        (lambda c: c["setup_commands"].append("pip install x"), "setup_commands: added"),
        (lambda c: c["head_start_ray_commands"].reverse(), "head_start_ray_commands, the order: "),
        (
            lambda c: replace(c["initialization_commands"], "123456789012", "210987654321"),
            "<account>: .* 123456789012 in docker.image.*; 210987654321 in initialization_commands",
        ),
        (
            lambda c: c["docker"].update(image=c["docker"]["image"].replace("eu-central-1", "us-east-1")),
            "<region>: .* us-east-1 in docker.image",
        ),
        (lambda c: c["docker"].update(image="ghcr.io/me/ficklenet:latest"), "docker.image: .*a tag that never moves"),
        (lambda c: node(c)["node_config"].update(ImageId="ami-12"), r"\.cpu_worker\..*ami-12.*ami- and 8 or 17"),
        (lambda c: c.update(cluster_name="my maps"), "cluster_name: .*my maps"),
        (
            lambda c: node(c)["node_config"]["BlockDeviceMappings"][0]["Ebs"].update(VolumeSize=20),
            "VolumeSize: 20; the shipped file has 96",
        ),
        (
            lambda c: c["available_node_types"][c["head_node_type"]]["node_config"].update(
                InstanceMarketOptions={"MarketType": "spot"}
            ),
            "head.node_config.InstanceMarketOptions: added",
        ),
    ],
)
def test_a_line_for_ray_up_that_nobody_has_to_change_is_named(change: Callable[..., object], sentence: str) -> None:
    name, (line,) = compared_with_shipped(changed("ray_cluster.yaml", change))
    assert name == "ray_cluster.yaml" and re.search(sentence, line)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda j: group(j)["template"]["spec"].update(serviceAccountName="default"), r"\.gpu\..*serviceAccountName: "),
        (
            lambda j: [each.pop("nvidia.com/gpu") for each in (resources(j)["requests"],)],
            r"\.gpu\..*requests\.nvidia\.com/gpu: left out",
        ),
        (lambda j: group(j).update(replicas=6), "workerGroupSpecs.gpu.replicas: 6; the shipped file has 0"),
        (lambda j: j["spec"].update(backOffLimit=j["spec"]["backoffLimit"]), "RayJob.spec.backOffLimit: added: 3"),
        (
            lambda j: group(j)["template"]["spec"].update(nodeSelector={"karpenter.sh/capacity-type": "spot"}),
            "nodeSelector: .*SPOT.*cpu.*karpenter.*gpu",
        ),
        (
            lambda j: resources(j)["limits"].update({"ephemeral-storage": "20Gi"}),
            'ephemeral-storage: "20Gi"; the shipped file has "50Gi"',
        ),
    ],
)
def test_a_line_for_kuberay_that_nobody_has_to_change_is_named(change: Callable[..., object], sentence: str) -> None:
    job = json.loads(json.dumps(yaml.safe_load(filled("kuberay/ray_job.yaml"))))  # without the anchors' shared parts
    change(job)
    name, (line,) = differences_of([job])
    assert name == "kuberay/ray_job.yaml" and re.search(sentence, line)


def test_secrets_are_named_but_not_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def with_keys(config: dict[str, Any]) -> None:
        config["docker"]["run_options"].append("--env AWS_SECRET_ACCESS_KEY=abc/def")

    (file := tmp_path / "keys.yaml").write_text(changed("ray_cluster.yaml", with_keys))
    assert main([str(file)]) == 0
    said = capsys.readouterr().out
    assert "AWS_SECRET_ACCESS_KEY (value not printed)" in said and "abc/def" not in said
    assert "differ from the shipped ray_cluster.yaml; check each, because nothing else judges them" in said
    assert "no problem was found, 1 line differs from the shipped file." in said


@pytest.mark.parametrize(
    "wrong", [None, [], {}, "text", 3, [1], {"a": 1}, [None], {date(2026, 1, 1): 1}, [{"name": [1]}]]
)
def test_values_of_any_type_are_compared(wrong: object) -> None:
    for name in FILES:
        for key in ("spec", "available_node_types", "docker", "head_node_type", "head_start_ray_commands"):
            document = yaml.safe_load(filled(name).split("\n---")[-1])
            differences_of([document | {key: wrong}])


@pytest.mark.parametrize("text", ["", "text", "- a\n- b", "a: [", "kind: RayJob\napiVersion: ray.io/v1"])
def test_another_file_is_one_sentence(text: str) -> None:
    (problem,) = problems_of(text)
    assert re.search("no keys|not YAML|has no spec", problem)


def test_the_command_prints_sentences_and_the_settings_of_jobs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text(filled("ray_cluster.yaml"))
    bad.write_text((ROOT / "kuberay/network_policy.yaml").read_text())
    assert main([str(good)]) == 0
    assert "no problem was found.\n" in (said := capsys.readouterr().out)
    assert (
        "max_actors=8 --set cluster.max_cpu_actors=32 --set classifier.device=cuda --set maps.device=cuda "
        "--set segmenter.device=cuda --set predictions.device=cuda\nThe policy of the head"
    ) in said
    assert main([str(good), str(bad), str(tmp_path / "none.yaml")]) == 2
    assert "bad.yaml: 1 problem." in (said := capsys.readouterr().out) and "There is no such file." in said
    (folder := tmp_path / "folder.yaml").mkdir()
    (binary := tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    assert main([str(folder), str(binary)]) == 2
    assert "It cannot be read (Is a directory)." in (said := capsys.readouterr().out) and "not a text file" in said
    assert main([]) == 2 and "Usage" in capsys.readouterr().out
    good.write_text(filled("ray_cluster.yaml"))
    bad.write_text(filled("kuberay/ray_job.yaml").replace("0.1.0", "0.1.1"))
    assert main([str(good), str(bad)]) == 0
    assert re.search(
        rf"These files together have several images: \S+:0\.1\.0 in {good} and \S+:0\.1\.1 in {bad}\.",
        capsys.readouterr().out,
    )
    assert main(["--help"]) == 0 and "It finds values in angle brackets that are left" in capsys.readouterr().out
