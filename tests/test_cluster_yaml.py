"""The cluster files, by Ray's own schema and scheduler: what starts which nodes, who reaches it."""

import copy
import ipaddress
import json
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.autoscaler_pb2 import GangResourceRequest

from saff.cluster.resources import ON_CPU, ON_GPU

ROOT = Path(__file__).parent.parent
MOST_UPLOADED = 16 * 2**20  # of it 9 MiB are the trained network
HAND_WRITTEN = ("cluster.yaml", "docs/kuberay.yaml")


def read_aws():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def read_kuberay():
    documents = yaml.safe_load_all((ROOT / "docs" / "kuberay.yaml").read_text())
    return {f"{d['kind']} {d['metadata']['name']}": d for d in documents}


def aws_config():
    """What Ray makes of cluster.yaml, as `ray up` and the head node do."""
    config = prepare_config(read_aws())
    validate_config(config)
    return config


def kuberay_config():
    """What the autoscaler in the head pod makes of the RayCluster."""
    cluster = copy.deepcopy(read_kuberay()["RayCluster saff"])
    cluster["metadata"]["namespace"] = "default"
    return _derive_autoscaling_config_from_ray_cr(cluster)


@pytest.fixture(scope="module", params=[aws_config, kuberay_config])
def config(request):
    return request.param()


def nodes_for(config, demands, together=()):
    """Nodes that Ray's autoscaler starts on an empty cluster, by type; None if it cannot help all.

    ``together`` are the bundles of a training's workers, which Ray asks for as one.
    """
    autoscaling = AutoscalingConfig(config, skip_content_hash=True)
    make = ResourceRequestUtil.make
    gang = GangResourceRequest(requests=[make(bundle) for bundle in together])
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=autoscaling.get_node_type_configs(),
            max_num_nodes=autoscaling.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([make(d) for d in demands]),
            gang_resource_requests=[gang] if together else [],
        )
    )
    if reply.infeasible_resource_requests or reply.infeasible_gang_resource_requests:
        return None
    head = config["head_node_type"]
    return {r.instance_type: r.count for r in reply.to_launch if r.instance_type != head}


def groups(config):
    """What the autoscaler knows of each group, but for its memory."""
    return {
        "head" if name == config["head_node_type"] else name: (
            {key: group["resources"].get(key, 0) for key in ("CPU", "GPU")},
            (group["min_workers"], group["max_workers"]),
        )
        for name, group in config["available_node_types"].items()
    }


# Who starts which nodes


@pytest.mark.parametrize(("parts", "nodes"), [(1, 1), (16, 1), (17, 2), (160, 10)])
def test_parts_start_cpu_nodes_alone(config, parts, nodes):
    assert nodes_for(config, [ON_CPU] * parts) == {"cpu": nodes}


def test_more_parts_than_the_cpu_nodes_can_hold_start_no_gpu_node(config):
    assert nodes_for(config, [ON_CPU] * 161) is None  # one waits
    config = copy.deepcopy(config)
    config["available_node_types"]["cpu"]["max_workers"] = 0
    assert nodes_for(config, [ON_CPU]) is None


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_training_starts_gpu_nodes_alone(config, gpus):
    assert nodes_for(config, [], together=[ON_GPU] * gpus) == {"gpu": gpus}


def test_re_inference_starts_gpu_nodes_alone(config):
    assert nodes_for(config, [ON_GPU] * 3) == {"gpu": 3}


def test_nothing_works_on_the_head(config):
    for group in config["available_node_types"]:
        if group != config["head_node_type"]:
            config = copy.deepcopy(config)
            del config["available_node_types"][group]
    assert nodes_for(config, [ON_CPU]) is None
    assert nodes_for(config, [ON_GPU]) is None


def test_more_gpus_than_the_limit_are_not_started(config):
    assert nodes_for(config, [], together=[ON_GPU] * 5) is None


def test_both_files_describe_the_same_groups():
    found = groups(aws_config())
    assert found == groups(kuberay_config())
    assert found["head"] == ({"CPU": 0, "GPU": 0}, (0, 0))
    assert all(low == 0 < high for name, (_, (low, high)) in found.items() if name != "head")
    highest = sum(high for _, (_, high) in found.values())
    assert aws_config()["max_workers"] == kuberay_config()["max_workers"] == highest
    assert aws_config()["idle_timeout_minutes"] == kuberay_config()["idle_timeout_minutes"]


# AWS: who may reach it, and what is on a node


def addresses(value):
    """Every address or network that stands anywhere in a value."""
    for text in re.findall(r"[\d.]+/\d+|[\da-f:]*::[\da-f:]*/\d+", yaml.safe_dump(value)):
        yield ipaddress.ip_network(text, strict=False)


def test_no_port_is_open_and_no_group_is_made_that_would_open_one():
    config = aws_config()
    assert list(addresses(config)) == []
    assert "security_group" not in config["provider"]
    for node in config["available_node_types"].values():
        # without a group Ray makes one, with port 22 open to the world
        assert node["node_config"]["SecurityGroupIds"]
        assert "NetworkInterfaces" not in node["node_config"]
    assert config["auth"]["ssh_proxy_use_node_id"]
    assert "ssm start-session" in config["auth"]["ssh_proxy_command"]
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_no_key_stands_in_a_file(name):
    text = (ROOT / name).read_text()
    for sign in (r"\b(AKIA|ASIA)\w{12}", r"(?i)secret_?access_?key", r"PRIVATE KEY", r"\b\w{40}\b"):
        assert not re.search(sign, text), sign


def test_nodes_have_roles_encrypted_disks_and_guarded_credentials():
    nodes = aws_config()["available_node_types"]
    profiles = {name: node["node_config"]["IamInstanceProfile"] for name, node in nodes.items()}
    worker = {"Name": "saff-worker"}
    assert profiles == {"head": {"Name": "saff-head"}, "cpu": worker, "gpu": worker}
    for node in nodes.values():
        settings = node["node_config"]
        (disk,) = settings["BlockDeviceMappings"]
        assert disk["Ebs"]["Encrypted"]
        assert disk["Ebs"]["DeleteOnTermination"]
        assert settings["MetadataOptions"] == {
            "HttpTokens": "required",
            "HttpPutResponseHopLimit": 1,
        }
    assert nodes["cpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_the_token_is_on_every_node_and_asked_for():
    config = aws_config()
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (start,) = [command for command in commands if "ray start" in command]
        assert start.startswith("export RAY_AUTH_MODE=token;")


def test_every_group_installs_saff_with_the_torch_it_needs():
    config = AutoscalingConfig(read_aws(), skip_content_hash=True)
    setups = {name: config.get_worker_setup_commands(name) for name in ("cpu", "gpu")}
    setups["head"] = config.get_head_setup_commands()
    for commands in setups.values():
        assert sum("/pip install" in c and c.endswith(" ~/saff") for c in commands) == 1
    with_cpu_torch = {n for n, commands in setups.items() if "whl/cpu torch" in " ".join(commands)}
    assert with_cpu_torch == {"head", "cpu"}
    assert "boto3" in setups["head"][-1]  # without it no node can be started


def test_what_is_mounted_is_enough_to_install():
    mounts = aws_config()["file_mounts"]
    needed = {"saff", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert {mounts[remote] for remote in mounts if remote.startswith("~/saff/")} == needed
    for name in needed:
        assert mounts[f"~/saff/{name}"] == name
        assert (ROOT / name).exists()


@pytest.mark.parametrize("group", ["head", "cpu", "gpu"])
def test_commands_are_ones_that_a_shell_understands(group):
    config = AutoscalingConfig(read_aws(), skip_content_hash=True)
    is_head = group == "head"
    setup = config.get_head_setup_commands() if is_head else config.get_worker_setup_commands(group)
    start = (
        config.get_head_start_ray_commands() if is_head else config.get_worker_start_ray_commands()
    )
    for command in [*setup, *start]:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_misspelt_field_is_refused():
    with pytest.raises(Exception, match="Additional properties are not allowed"):
        validate_config(prepare_config(read_aws() | {"idle_timeout": 5}))


# Kubernetes


def pods():
    spec = read_kuberay()["RayCluster saff"]["spec"]
    named = [("head", spec["headGroupSpec"])]
    named += [(group["groupName"], group) for group in spec["workerGroupSpecs"]]
    return {name: group["template"]["spec"] for name, group in named}


def test_the_token_comes_from_a_secret_that_is_not_in_the_file():
    documents = read_kuberay()
    options = documents["RayCluster saff"]["spec"]["authOptions"]
    assert options == {"mode": "token", "secretName": "saff-token"}
    assert not any(name.startswith("Secret ") for name in documents)


def test_the_cluster_grows_by_the_newer_autoscaler_and_the_job_uses_it():
    documents = read_kuberay()
    spec = documents["RayCluster saff"]["spec"]
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    name = documents["RayCluster saff"]["metadata"]["name"]
    assert documents["RayJob saff-1"]["spec"]["clusterSelector"] == {"ray.io/cluster": name}


def test_pods_have_no_privileges_and_work_has_the_role_for_the_bucket():
    documents = read_kuberay()
    assert documents["ServiceAccount saff-worker"]["automountServiceAccountToken"] is False
    for name, pod in pods().items():
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["runAsNonRoot"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not any("hostPath" in volume for volume in pod.get("volumes", []))
        assert pod["restartPolicy"] == "Never"
        resources = container["resources"]
        assert resources["limits"]["memory"] == resources["requests"]["memory"]
        assert pod["serviceAccountName"] == f"saff-{'head' if name == 'head' else 'worker'}"
        assert f"ServiceAccount {pod['serviceAccountName']}" in documents


# What a job takes along


def test_a_job_uploads_little_and_all_that_it_runs(tmp_path):
    archive = tmp_path / "package.zip"
    create_package(str(ROOT), archive, include_gitignore=True)  # as `--working-dir .` does
    assert archive.stat().st_size < MOST_UPLOADED
    with zipfile.ZipFile(archive) as package:
        sent = set(package.namelist())
    assert {"saff/cli/__init__.py", "jobs/pipeline.py", "pyproject.toml"} < sent
    weights = {str(path.relative_to(ROOT)) for path in ROOT.glob("saff/weights/*.safetensors")}
    assert weights
    assert weights < sent
    left_at_home = {".git", ".venv", "tests", "docs", "__pycache__"}
    assert not left_at_home & {part for name in sent for part in Path(name).parts}


# The guide


def policies():
    """The policies of docs/cluster.md, each a statement after the other."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    documents = [json.loads(block) for block in blocks]
    return [document["Statement"] for document in documents if "Statement" in document]


def test_the_policies_of_the_guide_give_no_more_than_is_needed():
    bucket, nodes = policies()
    for statement in [*bucket, *nodes]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        assert not any("*" in action for action in actions)
        if statement["Resource"] == "*":
            assert all(action.startswith("ec2:Describe") for action in actions)
        if {"ec2:TerminateInstances", "ec2:CreateTags", "iam:PassRole"} & set(actions):
            assert statement["Condition"]["StringEquals"]
    cluster = {"aws:ResourceTag/ray-cluster-name": read_aws()["cluster_name"]}
    assert any(s.get("Condition", {}).get("StringEquals") == cluster for s in nodes)


def test_the_guide_names_all_that_a_person_must_change():
    guide = (ROOT / "docs" / "cluster.md").read_text()
    config = read_aws()
    assert (ROOT / "cluster.yaml").read_text().count("# CHANGE") == 2
    (group,) = config["metadata"]["security_groups"]
    assert group in guide
    assert config["provider"]["region"] in guide
    for node in config["available_node_types"].values():
        assert node["node_config"]["IamInstanceProfile"]["Name"] in guide
