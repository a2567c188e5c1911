"""What infra/ holds agrees with the published schemas, with Prefect, and with itself."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import kubernetes_validate
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from check_jsonschema.builtin_schemas import get_builtin_schema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.client.schemas.objects import FlowRun
from prefect.events.related import tags_as_related_resources
from prefect.events.schemas.automations import EventTrigger
from prefect.events.schemas.events import ResourceSpecification
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings
from prefect.utilities.templating import apply_values, find_placeholders

from flows.local.deploying import CRASHED_RUNS, crashed_runs

ROOT = Path(__file__).parent.parent.parent
DOCKER, KUBERNETES, STORAGE = (ROOT / "infra" / n for n in ("docker", "kubernetes", "storage"))
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
TEMPLATE = json.loads((KUBERNETES / "base-job-template.json").read_text())
PROJECT_FILE = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PROJECT_FILE["project"]
DEMO = tomllib.loads((ROOT / "examples" / "pyproject.toml").read_text())["project"]
OWN = {PROJECT["name"], DEMO["name"]}
UNPINNED = {
    *("mlflow-skinny", "trackio"),  # ask for older versions than are pinned: docs/tracking.md
    *("gcsfs", "adlfs"),  # clients of stores that are not tried: docs/hub.md
}
PINS = {
    canonicalize_name(name): version
    for name, _, version in (
        line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
    if version
}
KUBERNETES_VERSION = "1.34"
POOL = "albat"
USER = 1001  # of the image and of Prefect's charts

# Read past Prefect's settings: by the environment, by prefect-redis, by prefect-kubernetes.
ELSEWHERE = {
    "PREFECT_SERVER_ENCRYPTION_KEY",
    "PREFECT_REDIS_MESSAGING_URL",
    "PREFECT_REDIS_WORKER_CLEANUP_QUEUE_URL",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME",
    "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY",
    "PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_NAMESPACES",
}


def read_yaml(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


COMPOSE = read_yaml(DOCKER / "compose.yaml")
SERVER = read_yaml(KUBERNETES / "server-values.yaml")
WORKER = read_yaml(KUBERNETES / "worker-values.yaml")
OBJECTS = [
    each
    for name in ("secrets.example.yaml", "cache.yaml")
    for each in yaml.safe_load_all((KUBERNETES / name).read_text())
]
PREFECT_YAML = ROOT / "prefect.yaml"


def items(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        yield key, inner
        yield from items(inner)
    for inner in value if isinstance(value, list) else ():
        yield from items(inner)


def check_prefect_names(names: set[str]) -> None:
    known = {name for name in _get_settings_fields(Settings) if name.isupper()} | ELSEWHERE
    of_prefect = {name for name in names if name.startswith("PREFECT_")}
    assert of_prefect
    assert of_prefect - known == set()


def mistakes(content: Any, schema: dict[str, Any]) -> list[str]:
    jsonschema.Draft202012Validator.check_schema(schema)
    return [e.message for e in jsonschema.Draft202012Validator(schema).iter_errors(content)]


def kubernetes_mistake(manifest: dict[str, Any]) -> str | None:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        return error.message
    return None


def pod_of(container: dict[str, Any]) -> dict[str, Any]:
    container = {"name": "any", "image": "any", **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "any"},
        "spec": {"containers": [container]},
    }


# ----------------------------------------------------------------------------- image


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run(
        [hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def copied() -> list[str]:
    found = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [source for line in found for source in line.split()]


def test_what_the_image_copies_is_sent_and_there() -> None:
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in lines
    assert set(copied()) == {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied())


def test_every_package_of_the_project_is_in_the_image() -> None:
    found = PROJECT_FILE["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {name.rstrip("*") for name in found}
    assert packages <= set(copied())


def test_all_that_is_installed_is_pinned() -> None:
    installs = re.findall(r"pip install ((?:[^&\n]|\\\n)+)", DOCKERFILE)
    assert len(installs) == 6
    for arguments in installs:
        assert "--constraint constraints.txt" in arguments or (
            "--no-deps" in arguments and "/wheels/" in arguments
        ), arguments


def test_extras_of_the_image_exist() -> None:
    named = re.findall(r'"\.\[(.+?)\]"', DOCKERFILE)
    assert named == ["cpu,server,kubernetes", "gpu,server,kubernetes"]
    assert {extra for each in named for extra in each.split(",")} <= set(
        PROJECT["optional-dependencies"]
    )


def test_constraints_have_a_fitting_version_of_every_requirement() -> None:
    extras = PROJECT["optional-dependencies"].values()
    for text in [*PROJECT["dependencies"], *(each for extra in extras for each in extra)]:
        wanted = Requirement(text)
        if wanted.name in OWN | UNPINNED:  # extras that take in others, and the demos
            continue
        assert PINS[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_python_is_the_one_that_the_project_is_tested_with() -> None:
    found = re.search(r"^ARG PYTHON=(\d+\.\d+)\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)
    makefile = re.search(r"^PYTHON \?= python(.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found and makefile and found[1] == makefile[1]


def test_both_targets_run_as_a_numbered_user_that_is_not_root() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    last = [s for s in stages if re.match(r"run AS (cpu|cuda)\n", s)]
    assert [re.findall(r"^USER (.+)$", stage, re.MULTILINE) for stage in last] == [[str(USER)]] * 2
    assert f"--uid {USER} " in DOCKERFILE


def test_image_tags_are_prefect_s_version_then_albat_s() -> None:
    tag = f"{PINS['prefect']}-{PROJECT['version']}"
    texts = [p.read_text() for p in (ROOT / "infra").rglob("*") if p.is_file()]
    texts.append((ROOT / "docs" / "production.md").read_text())
    found = {t for text in texts for t in re.findall(r"\balbat:(\d[\w.-]*)", text)}
    assert found == {tag, f"{tag}-cuda"}
    assert SERVER["global"]["prefect"]["image"]["prefectTag"] == tag
    assert WORKER["worker"]["image"]["prefectTag"] == tag


# --------------------------------------------------------------------------- compose


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    schema, content = get_builtin_schema("vendor.compose-spec"), read_yaml(DOCKER / name)
    assert mistakes(content, schema) == []
    assert mistakes(content | {"servces": {}}, schema)  # it would be seen


def test_services_name_only_what_is_there() -> None:
    services = COMPOSE["services"]
    assert read_yaml(DOCKER / "compose.gpu.yaml")["services"].keys() <= services.keys()
    for name, service in services.items():
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name
        for each in service.get("configs", ()):
            assert each["source"] in COMPOSE["configs"], name
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith(("$", "./")), volume
        for other, need in service.get("depends_on", {}).items():
            kept = services[other]
            assert need["condition"] != "service_healthy" or "healthcheck" in kept, other
            ends = need["condition"] == "service_completed_successfully"
            assert ends == (kept["restart"] != "unless-stopped"), other
    for config in COMPOSE["configs"].values():
        assert "content" in config or (DOCKER / config["file"]).is_file()


def test_builds_name_targets_of_the_dockerfile() -> None:
    files = [COMPOSE, read_yaml(DOCKER / "compose.gpu.yaml")]
    builds = [s["build"] for file in files for s in file["services"].values() if "build" in s]
    assert {build["target"] for build in builds} == {"cpu", "cuda"}
    for build in builds:
        assert f" AS {build['target']}\n" in DOCKERFILE
        context = (DOCKER / build.get("context", "../..")).resolve()
        assert context == ROOT
        assert (context / build.get("dockerfile", "infra/docker/Dockerfile")).is_file()


def test_environment_has_only_settings_that_prefect_reads() -> None:
    services = COMPOSE["services"].values()
    check_prefect_names({name for s in services for name in s.get("environment", {})})


def test_secrets_are_in_no_file_and_missing_ones_are_named() -> None:
    text = (DOCKER / "compose.yaml").read_text() + (DOCKER / "compose.gpu.yaml").read_text()
    used = re.findall(r"\$\{(\w+)(:\?|:-)?", text)
    assert all(how for _, how in used), "each says what happens without it"
    example = (DOCKER / ".env.example").read_text()
    empty = set(re.findall(r"^(\w+)=$", example, re.MULTILINE))
    optional = set(re.findall(r"^#([A-Z_]+)=.+$", example, re.MULTILINE))
    assert {name for name, how in used if how == ":?"} == empty
    assert {name for name, how in used if how == ":-"} == optional
    environments = [s.get("environment", {}) for s in COMPOSE["services"].values()]
    for name, value in (pair for each in environments for pair in each.items()):
        if re.search("PASSWORD|SECRET|AUTH|KEY", name):
            assert re.fullmatch(r"\$\{\w+:\?.+\}", value), name
    ignored = subprocess.run(
        ["git", "check-ignore", "--quiet", "infra/docker/.env"], cwd=ROOT, check=False
    )
    assert ignored.returncode == 0


def test_nothing_is_published_beyond_this_machine() -> None:
    ports = [port for s in COMPOSE["services"].values() for port in s.get("ports", ())]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_workers_may_use_their_bucket_and_no_more() -> None:
    content = COMPOSE["configs"]["s3-identities"]["content"]
    filled = re.sub(r"\$\{(\w+):\?.+?\}", r"\1", content)
    identities = {i["name"]: i for i in json.loads(filled)["identities"]}
    assert identities.keys() == {"setup", "worker"}
    bucket = COMPOSE["services"]["setup"]["environment"]["ALBAT_BUCKET"]
    assert all(action.endswith(f":{bucket}") for action in identities["worker"]["actions"])
    for name, identity in identities.items():
        (keys,) = identity["credentials"]
        environment = COMPOSE["services"][name]["environment"]
        assert environment["AWS_ACCESS_KEY_ID"].startswith(f"${{{keys['accessKey']}:?")
        assert environment["AWS_SECRET_ACCESS_KEY"].startswith(f"${{{keys['secretKey']}:?")


def test_workers_cannot_reach_the_database() -> None:
    reachable = {
        name: {other for other, s in COMPOSE["services"].items() if {*s["networks"]} & networks}
        for name, networks in ((n, {*s["networks"]}) for n, s in COMPOSE["services"].items())
    }
    assert not reachable["worker"] & {"postgres", "redis"}
    assert {"server", "s3"} <= reachable["worker"]
    assert {"postgres", "redis"} <= reachable["server"] & reachable["services"]


def test_shellcheck_finds_nothing() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    scripts = sorted((ROOT / "infra").rglob("*.sh"))
    assert scripts
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


# ------------------------------------------------------------------------ kubernetes


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda m: m["metadata"]["name"])
def test_manifests_follow_kubernetes_schemas(manifest: dict[str, Any]) -> None:
    assert kubernetes_mistake(manifest) is None
    assert manifest["metadata"]["namespace"] == "albat"


@pytest.mark.parametrize(
    "part",
    [
        {"env": SERVER["global"]["prefect"]["env"] + SERVER["server"]["env"]},
        {"resources": SERVER["server"]["resources"]},
        {"resources": SERVER["backgroundServices"]["resources"]},
        {"resources": WORKER["worker"]["resources"]},
    ],
)
def test_what_values_put_into_containers_follows_their_schema(part: dict[str, Any]) -> None:
    assert kubernetes_mistake(pod_of(part)) is None
    assert kubernetes_mistake(pod_of(part | {"resorces": {}}))  # it would be seen


def test_values_have_only_settings_that_prefect_reads() -> None:
    lists = [value for key, value in items([SERVER, WORKER]) if key == "env"]
    check_prefect_names({variable["name"] for each in lists for variable in each})


def test_secrets_that_are_referred_to_are_in_the_example() -> None:
    example = {o["metadata"]["name"]: o["stringData"] for o in OBJECTS if o["kind"] == "Secret"}
    references = [value for key, value in items([SERVER, WORKER]) if key == "secretKeyRef"]
    assert references
    for reference in references:
        assert reference["key"] in example[reference["name"]]
    # what the charts look for by themselves
    for values in (SERVER["server"], WORKER["worker"]["selfHostedServerApiConfig"]):
        assert "auth-string" in example[values["basicAuth"]["existingSecret"]]
    assert "connection-string" in example[SERVER["secret"]["name"]]
    docket = SERVER["backgroundServices"]["messaging"]["docket"]
    assert docket["existingSecretKey"] in example[docket["existingSecret"]]
    assert defaults()["storage_secret"] in example


def test_one_pool_is_meant_everywhere() -> None:
    assert f'"--pool", "{POOL}"]' in DOCKERFILE
    assert WORKER["worker"]["config"]["workPool"] == POOL
    setup = (DOCKER / "setup.sh").read_text()
    assert {*re.findall(r"work-pool (?:create|set-concurrency-limit) (\S+)", setup)} == {POOL}


@pytest.mark.parametrize("there", [True, False])
def test_setup_leaves_a_pool_alone_that_is_there(tmp_path: Path, there: bool) -> None:
    told = tmp_path / "told"
    stub = f'#!/bin/sh\necho "$0 $*" >> {told}\n[ "$2" != inspect ] || exit {int(not there)}\n'
    for command in ("prefect", "python"):
        (tmp_path / command).write_text(stub)
        (tmp_path / command).chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PREFECT_API_URL": "http://h/api"}
    subprocess.run(["sh", DOCKER / "setup.sh"], env=variables, check=True)
    said = told.read_text()
    assert f"work-pool inspect {POOL}" in said
    assert (f"work-pool create {POOL} " in said) is not there
    assert "--overwrite" not in said


def test_deployments_go_to_that_pool_by_module_path() -> None:
    deployments = read_yaml(PREFECT_YAML)["deployments"]
    assert deployments
    for deployment in deployments:
        assert deployment["work_pool"]["name"] == POOL
        assert "/" not in deployment["entrypoint"], "the image has the code installed"


# ------------------------------------------------------------- job template, automation


def defaults() -> dict[str, Any]:
    properties = TEMPLATE["variables"]["properties"]
    return {name: each["default"] for name, each in properties.items() if "default" in each}


def rendered() -> dict[str, Any]:
    """The configuration of a run that sets nothing of its own, as the worker makes it."""
    given = {name: value for name, value in defaults().items() if value is not None}
    return apply_values(TEMPLATE["job_configuration"], given)


def job_manifest(manifest: dict[str, Any] | None = None) -> dict[str, Any]:
    manifest = manifest or rendered()["job_manifest"]
    pod = manifest["spec"]["template"]["spec"]
    # The worker refuses a template without these two here; Kubernetes drops them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    return manifest


def test_every_variable_of_the_template_is_defined_and_used() -> None:
    used = {p.name for p in find_placeholders(TEMPLATE["job_configuration"])}
    assert used == TEMPLATE["variables"]["properties"].keys()


def test_defaults_are_of_their_variable_s_type() -> None:
    schema, values = TEMPLATE["variables"], defaults()
    assert mistakes(values, schema) == []
    for name in values:
        assert mistakes(values | {name: object()}, schema), f"{name} may be anything"


def test_the_job_follows_kubernetes_schemas() -> None:
    manifest = job_manifest()
    assert kubernetes_mistake(manifest) is None
    manifest["spec"]["template"]["spec"]["continers"] = []
    assert kubernetes_mistake(manifest)  # it would be seen


def test_the_job_asks_for_a_gpu_and_finds_its_volumes() -> None:
    pod = job_manifest()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == 1
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == volumes.keys()
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    claims = {o["metadata"]["name"] for o in OBJECTS if o["kind"] == "PersistentVolumeClaim"}
    cache = volumes[mounts["/home/albat/.cache"]]
    assert cache["persistentVolumeClaim"]["claimName"] in claims
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert {"/tmp", "/home/albat"} <= mounts.keys(), "what has to be written"
    assert pod["securityContext"]["runAsUser"] == USER


def test_the_kubernetes_worker_takes_the_template() -> None:
    worker = pytest.importorskip("prefect_kubernetes.worker")
    configuration = worker.KubernetesWorkerJobConfiguration(**rendered())
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
    manifest = job_manifest(configuration.job_manifest)
    assert kubernetes_mistake(manifest) is None
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert container["env"]


def test_names_of_settings_that_come_with_other_packages() -> None:
    redis = pytest.importorskip("prefect_redis.client").RedisMessagingSettings
    queue = pytest.importorskip("prefect_redis.cleanup_queue").RedisWorkerCleanupQueueSettings
    kubernetes = pytest.importorskip("prefect_kubernetes.settings").KubernetesSettings
    found = {
        name
        for settings in (redis, queue, kubernetes)
        for name in _get_settings_fields(settings)
        if name.isupper()
    }
    assert found | {"PREFECT_SERVER_ENCRYPTION_KEY"} >= ELSEWHERE


def test_prefect_takes_the_automation_and_it_is_of_deployed_runs_alone() -> None:
    setup, (trigger, pending) = (
        (DOCKER / "setup.sh").read_text(),
        (automation.trigger for automation in crashed_runs()),
    )
    assert isinstance(trigger, EventTrigger)
    assert isinstance(pending, EventTrigger)
    starts = TEMPLATE["variables"]["properties"]["pod_watch_timeout_seconds"]["default"]
    assert pending.within.total_seconds() > starts
    assert pending.match_related == trigger.match_related
    deployed = read_yaml(PREFECT_YAML)
    pool = deployed["definitions"]["work_pool"]
    heartbeat = float(pool["job_variables"]["env"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert trigger.within.total_seconds() >= 3 * heartbeat
    assert isinstance(trigger.match_related, ResourceSpecification)
    assert not trigger.match_related.includes(tags_as_related_resources(["another"]))
    for each in deployed["deployments"]:
        assert trigger.match_related.includes(tags_as_related_resources(each["tags"]))
    assert "python -m flows.local.redeploying" in setup
    packed = PROJECT_FILE["tool"]["setuptools"]["package-data"]["flows.local"]
    assert any(CRASHED_RUNS.match(pattern) for pattern in packed), "the image has it installed"


# --------------------------------------------------------------------------- storage


def test_lifecycle_rule_is_one_that_s3_takes() -> None:
    rules = json.loads((STORAGE / "lifecycle.json").read_text())
    service = get_session().get_service_model("s3")
    shape = service.operation_model("PutBucketLifecycleConfiguration").input_shape
    given = {"Bucket": "any", "LifecycleConfiguration": rules}
    report = ParamValidator().validate(given, shape)
    assert not report.has_errors(), report.generate_report()
    (rule,) = rules["Rules"]
    assert rule["Status"] == "Enabled"
    assert rule.keys() <= {"ID", "Status", "Filter", "AbortIncompleteMultipartUpload"}


@pytest.mark.parametrize("name", ["worker-policy", "reader-policy"])
def test_policies_allow_what_they_name_and_no_more(name: str) -> None:
    policy = json.loads((STORAGE / f"{name}.json").read_text())
    assert policy.keys() == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    writing = {}
    for statement in policy["Statement"]:
        assert statement.keys() == {"Sid", "Effect", "Action", "Resource"}
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert re.fullmatch(r"s3:[A-Z][A-Za-z]+", action), "no wildcards"
            of_objects = "Object" in action or ("Upload" in action and "Bucket" not in action)
            for resource in statement["Resource"]:
                assert re.fullmatch(r"arn:aws:s3:::[a-z-]+(/\*)?", resource)
                assert resource.endswith("/*") == of_objects, (action, resource)
                if not action.startswith(("s3:Get", "s3:List")):
                    writing.setdefault(resource, []).append(action)
    expected = {"arn:aws:s3:::albat/*"} if name == "worker-policy" else set()
    assert writing.keys() == expected


# ------------------------------------------------------------------------------ docs


def test_the_page_names_files_that_are_there() -> None:
    page = (ROOT / "docs" / "production.md").read_text()
    named = set(re.findall(r"\b(?:tests/)?infra/[\w./-]*\w", page)) - {"infra/docker/.env"}
    assert named
    assert all((ROOT / name).exists() for name in named), named
    for target in re.findall(r"\]\(((?!http)[^)#]+)", page):
        assert (ROOT / "docs" / target).exists(), target
