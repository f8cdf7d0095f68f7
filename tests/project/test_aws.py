"""The cluster on AWS: what Ray's own launcher does with ray_cluster.yaml, and what the documented policies allow.

No request goes to AWS: Ray's classes get a recorder in the place of EC2.
"""

import ast
import copy
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import packages_distributions, requires
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from ray._private import utils
from ray.autoscaler._private.aws import config as launcher
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.command_runner import DockerCommandRunner

from jobs import prepare_dataset, run_pipeline
from jobs.cli.reference import job_parser_of
from jobs.run.config import resolve_config

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
PAGE = (ROOT / "docs/tutorial-aws.md").read_text()
NAME = CONFIG["cluster_name"]
EC2 = "arn:aws:ec2:<region>:<account>"


class RecordedEc2:
    """Keeps the requests that change something, as (action, arguments)."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.meta = SimpleNamespace(client=self)

    def create_instances(self, **arguments: Any) -> list[Any]:
        self.requests.append(("ec2:RunInstances", arguments))
        return [SimpleNamespace(id="i-1", instance_id="i-1", state_reason=None, state={"Name": "pending"})]

    def create_tags(self, **arguments: Any) -> None:
        self.requests.append(("ec2:CreateTags", arguments))

    def terminate_instances(self, **arguments: Any) -> None:
        self.requests.append(("ec2:TerminateInstances", arguments))

    def stop_instances(self, **arguments: Any) -> None:
        self.requests.append(("ec2:StopInstances", arguments))


@pytest.fixture
def requests_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What Ray asks of EC2 while it starts, tags and ends a GPU worker of the file."""
    ec2 = RecordedEc2()
    monkeypatch.setattr(node_provider, "make_ec2_resource", lambda **_: ec2)
    monkeypatch.setattr(node_provider, "TAG_BATCH_DELAY", 0)
    provider = node_provider.AWSNodeProvider(CONFIG["provider"], NAME)
    node_config = CONFIG["available_node_types"]["gpu_worker"]["node_config"] | {"SubnetIds": ["subnet-1"]}
    provider.create_node(node_config, {"ray-node-kind": "worker"}, 1)
    provider.tag_cache["i-1"] = {}
    provider.set_node_tags("i-1", {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(["i-1"])
    return ec2.requests


def policies() -> Iterator[list[dict[str, Any]]]:
    for block in re.findall(r"```json\n(.+?)```", PAGE, re.DOTALL):
        policy = json.loads(block)
        yield policy.get("Statement", [policy])


JOB, HEAD, KEY = policies()


def listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def allows(statements: list[dict[str, Any]], action: str, resource: str, context: dict[str, str]) -> bool:
    """Whether a policy of `Allow` and `StringEquals` alone allows an action in a context of condition keys."""
    return any(
        action in listed(each["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(each["Resource"]))
        and all(context.get(key) in listed(value) for key, value in must_equal(each).items())
        for each in statements
    )


def must_equal(statement: dict[str, Any]) -> dict[str, str | list[str]]:
    """The condition keys of a statement and their allowed values."""
    conditions = statement.get("Condition", {"StringEquals": {}})
    assert conditions.keys() == {"StringEquals"}
    return conditions["StringEquals"]


CLUSTER_TAG = {"aws:ResourceTag/ray-cluster-name": NAME}


def test_rays_launcher_adds_no_rule_to_the_groups_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, _: Any) -> None:
        raise AssertionError(f"Ray asks {name} for a security group")

    monkeypatch.setattr(launcher, "_resource", refuse)
    launcher._configure_security_group(copy.deepcopy(CONFIG))
    one_without = copy.deepcopy(CONFIG)
    del one_without["available_node_types"]["gpu_worker"]["node_config"]["SecurityGroupIds"]
    one_without["available_node_types"]["gpu_worker"]["node_config"]["SubnetIds"] = ["subnet-1"]
    with pytest.raises(AssertionError, match="a security group"):
        launcher._configure_security_group(one_without)
    # The reason: a group of Ray's is open to the world, whatever rules the file has.
    rules = launcher._create_default_inbound_rules({"sg-1"}, [{"FromPort": 22, "IpRanges": [{"CidrIp": "10.0.0.0/8"}]}])
    assert {"CidrIp": "0.0.0.0/0"} in [each for rule in rules for each in rule.get("IpRanges", [])]


def subnet(name: str, *, public: bool) -> SimpleNamespace:
    return SimpleNamespace(
        subnet_id=name, vpc_id="vpc-1", state="available", availability_zone="zone-a", map_public_ip_on_launch=public
    )


def test_the_file_names_the_subnets_because_ray_also_takes_public_ones() -> None:
    public, private = subnet("public", public=True), subnet("private", public=False)
    internal = CONFIG["provider"]["use_internal_ips"]
    taken = [
        launcher._usable_subnet_ids(given, [public, private], "zone-a", "vpc-1", internal, "gpu_worker")
        for given in (None, [private])
    ]
    assert taken == [(["public", "private"], "vpc-1"), (["private"], "vpc-1")]
    for node_type in CONFIG["available_node_types"].values():
        assert node_type["node_config"]["SubnetIds"] == ["<private-subnet-a>", "<private-subnet-b>"]


def test_shared_memory_is_larger_than_rays_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "disable_shm_size_detection" not in CONFIG["docker"]
    available = int(30.5 * 2**30)  # of an m7i.2xlarge
    host = SimpleNamespace(run=lambda *_, **__: f"MemAvailable: {available // 1024} kB".encode())
    runner = SimpleNamespace(docker_config=CONFIG["docker"], ssh_command_runner=host)
    options = DockerCommandRunner._auto_configure_shm(runner, CONFIG["docker"]["run_options"])
    (given,) = [option.split("=")[1].strip("'") for option in options if "--shm-size" in option]
    shared = float(given.removesuffix("b"))
    monkeypatch.setattr(utils, "get_shared_memory_bytes", lambda: shared)
    assert utils.resolve_object_store_memory(available) <= shared


def test_the_token_is_made_readable_by_its_owner_alone() -> None:
    files = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "ray_cluster.yaml"]
    lines = [line for file in files for line in file.read_text().splitlines() if "get-auth-token" in line]
    assert len(lines) == 2
    assert all("(umask 077; ray get-auth-token --generate > /dev/null)" in line for line in lines)


def test_the_documented_jobs_on_cpu_workers_have_settings_that_fit_the_file() -> None:
    section = PAGE.split("### Own photographs, on CPU workers alone")[1].split("### ")[0]
    prepare, estimate, job = re.findall(r"python (jobs/.+?)```", section, re.DOTALL)
    _, *flags = shlex.split(prepare.replace("\\\n", " "))
    given = job_parser_of(prepare_dataset.main).parse_args(flags)
    config = resolve_config({}, str(ROOT / given.config), given.set)
    assert config.data.train_splits == ("train",) and config.predictions.splits == ("train", "rest", "val")
    assert (config.segmenter.batch_size, config.unit_size) == (20, 256)
    worker = CONFIG["available_node_types"]["cpu_worker"]
    for command in (estimate, job):
        _, *flags = shlex.split(command.replace("\\\n", " "))
        cluster = resolve_config({}, None, job_parser_of(run_pipeline.main).parse_args(flags).set).cluster
        assert cluster.autoscaling and cluster.max_cpu_actors == worker["max_workers"] * worker["resources"]["CPU"]
        assert cluster.cpus_per_training_worker < worker["resources"]["CPU"]
    assert CONFIG["available_node_types"]["head"]["resources"]["CPU"] == 0  # so the driver of the estimate is elsewhere
    assert "--entrypoint-num-cpus 1 --working-dir . -- \\\n    python jobs/run_pipeline.py" in section


def test_the_documented_lines_split_a_table_at_random_within_each_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = re.findall(r"```python\n(.+?)```", PAGE, re.DOTALL)
    (tmp_path / "labels.csv").write_text(
        "file,labels\n" + "".join(f"{number}.jpg,{'cat' if number < 300 else 'dog;cow'}\n" for number in range(500))
    )
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    rows = [line.split(",") for line in (tmp_path / "labels_split.csv").read_text().splitlines()]
    assert rows[0] == ["file", "labels", "split"] and len(rows) == 501
    found = Counter((labels, split) for _, labels, split in rows[1:])
    assert [found["cat", split] for split in ("train", "val", "rest")] == [30, 15, 255]
    assert [found["dog;cow", split] for split in ("train", "val", "rest")] == [20, 10, 170]
    numbers = [
        int(name.removesuffix(".jpg")) for name, labels, split in rows[1:] if (labels, split) == ("cat", "train")
    ]
    assert min(numbers) < 100 and max(numbers) > 200  # not the first ones


def test_the_documented_commands_make_the_roles_of_the_file() -> None:
    section = PAGE.split("## The roles")[1].split("## ")[0]
    (trust,) = re.findall(r"<<'END'\n(.+?)END\n", section, re.DOTALL)
    (statement,) = json.loads(trust)["Statement"]
    assert statement["Principal"] == {"Service": "ec2.amazonaws.com"} and statement["Action"] == "sts:AssumeRole"
    profiles = {each["node_config"]["IamInstanceProfile"]["Arn"] for each in CONFIG["available_node_types"].values()}
    (roles,) = re.findall(r"for ROLE in (.+); do", section)
    assert {profile.rsplit("/", 1)[1] for profile in profiles} == set(roles.split())


def test_the_machines_roles_need_session_tokens() -> None:
    for node_type in CONFIG["available_node_types"].values():
        assert node_type["node_config"]["MetadataOptions"] == {"HttpTokens": "required", "HttpPutResponseHopLimit": 1}


def test_the_head_may_do_what_rays_launcher_asks(requests_of_a_worker: list[tuple[str, dict[str, Any]]]) -> None:
    (run, started), (tag, tagged), (end, ended) = requests_of_a_worker
    tags = {each["Key"]: each["Value"] for each in started["TagSpecifications"][0]["Tags"]}
    context = {
        "aws:RequestTag/ray-cluster-name": tags["ray-cluster-name"],
        "ec2:InstanceType": started["InstanceType"],
    }
    assert allows(HEAD, run, f"{EC2}:instance/*", context)
    assert allows(HEAD, "ec2:CreateTags", f"{EC2}:instance/i-1", {"ec2:CreateAction": "RunInstances"})
    for used in ("volume/*", "network-interface/*", "subnet/subnet-1", "spot-instances-request/*"):
        assert allows(HEAD, run, f"{EC2}:{used}", {}), used
    assert allows(HEAD, run, f"{EC2}:security-group/{started['SecurityGroupIds'][0]}", {})
    assert allows(HEAD, run, f"{EC2}:key-pair/ray-autoscaler_<region>", {})
    assert allows(HEAD, run, "arn:aws:ec2:<region>::image/ami-1", {})
    assert tagged["Resources"] == ended["InstanceIds"] == ["i-1"]
    assert allows(HEAD, tag, f"{EC2}:instance/i-1", CLUSTER_TAG)
    assert allows(HEAD, end, f"{EC2}:instance/i-1", CLUSTER_TAG)
    role = started["IamInstanceProfile"]["Arn"].replace("instance-profile/", "role/")
    assert allows(HEAD, "iam:PassRole", role, {"iam:PassedToService": "ec2.amazonaws.com"})


def test_the_head_may_start_the_worker_types_of_the_file() -> None:
    types = {name: each["node_config"]["InstanceType"] for name, each in CONFIG["available_node_types"].items()}
    (allowed,) = [must_equal(each)["ec2:InstanceType"] for each in HEAD if "ec2:InstanceType" in must_equal(each)]
    assert set(allowed) == {types["cpu_worker"], types["gpu_worker"]}


@pytest.mark.parametrize(
    ("action", "context"),
    [
        ("ec2:TerminateInstances", {}),
        ("ec2:TerminateInstances", {"aws:ResourceTag/ray-cluster-name": "another"}),
        ("ec2:CreateTags", {}),  # else it could give the tag to any machine, and then end it
        ("ec2:CreateTags", {"aws:ResourceTag/ray-cluster-name": "another"}),
        ("ec2:CreateTags", {"aws:RequestTag/ray-cluster-name": NAME}),
        ("ec2:RunInstances", {"ec2:InstanceType": "g6.xlarge"}),
        ("ec2:RunInstances", {"aws:RequestTag/ray-cluster-name": NAME, "ec2:InstanceType": "p5.48xlarge"}),
    ],
)
def test_the_head_may_not_touch_other_machines(action: str, context: dict[str, str]) -> None:
    assert not allows(HEAD, action, f"{EC2}:instance/i-other", context)
    assert not allows(JOB, action, f"{EC2}:instance/i-other", context)


def test_the_image_has_what_rays_launcher_imports() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"--constraint constraints\.txt '\.\[(\w+)\]'", (ROOT / "Containerfile").read_text())
    installed = set(extras[asked]) | {"ray"} | names_of(requires("ray") or []) | names_of(requires("boto3") or [])
    distributions = packages_distributions()
    for module in Path(ray.__file__).parent.glob("autoscaler/_private/aws/**/*.py"):
        for name in imported_packages(module) & distributions.keys():
            assert installed & set(distributions[name]), f"{module.name} imports {name}"


def names_of(requirements: list[str]) -> set[str]:
    """The names of requirements that hold without an extra."""
    return {re.split(r"[^\w-]", each)[0] for each in requirements if "extra ==" not in each}


def imported_packages(module: Path) -> set[str]:
    """The top-level names that a module imports absolutely."""
    nodes = list(ast.walk(ast.parse(module.read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return {name.split(".")[0] for name in names}
