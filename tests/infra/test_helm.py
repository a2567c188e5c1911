"""Prefect's charts with our values, as helm itself renders them.

No package registry has the charts, so this runs where they are at hand:

    helm pull prefect/prefect-server --untar --untardir charts   # and prefect/prefect-worker
    ALBAT_CHARTS=charts pytest tests/infra/test_helm.py
"""

import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.test_manifests import (
    DOCKERFILE,
    KUBERNETES,
    OBJECTS,
    check_prefect_names,
    items,
    kubernetes_mistake,
)

CHARTS = os.environ.get("ALBAT_CHARTS", "")
HELM = shutil.which("helm") or ""

# Read by prefect-redis where it has no URL, and by prefect-kubernetes from the environment.
OF_THE_CHARTS = {
    *(f"PREFECT_REDIS_MESSAGING_{each}" for each in ("HOST", "PORT", "DB")),
    "PREFECT_KUBERNETES_CLUSTER_UID",
}

pytestmark = pytest.mark.skipif(
    not (CHARTS and HELM), reason="no helm, or ALBAT_CHARTS names no charts"
)


@pytest.fixture(scope="module", params=["server", "worker"])
def rendered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What would be applied to the cluster."""
    name, values = f"prefect-{request.param}", KUBERNETES / f"{request.param}-values.yaml"
    command = [HELM, "template", name, Path(CHARTS) / name, "-n", "albat", "--values", values]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [without_nothing(each) for each in yaml.safe_load_all(done.stdout)]


def without_nothing(content: Any) -> Any:
    """Leave out keys without a value, as the cluster does."""
    if isinstance(content, dict):
        return {key: without_nothing(each) for key, each in content.items() if each is not None}
    return [without_nothing(each) for each in content] if isinstance(content, list) else content


def containers(rendered: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [c for key, value in items(rendered) if key == "containers" for c in value]


def test_objects_follow_kubernetes_schemas(rendered: list[dict[str, Any]]) -> None:
    assert {each["kind"] for each in rendered} > {"ServiceAccount", "Deployment"}
    assert [kubernetes_mistake(each) for each in rendered] == [None] * len(rendered)


def test_each_variable_is_set_once_and_known_to_prefect(rendered: list[dict[str, Any]]) -> None:
    for container in containers(rendered):
        names = Counter(variable["name"] for variable in container["env"])
        assert [name for name, times in names.items() if times > 1] == []
        check_prefect_names(set(names) - OF_THE_CHARTS)


def test_secrets_are_in_the_example(rendered: list[dict[str, Any]]) -> None:
    example = {o["metadata"]["name"]: o["stringData"] for o in OBJECTS if o["kind"] == "Secret"}
    references = [value for key, value in items(rendered) if key == "secretKeyRef"]
    assert references
    for reference in references:
        assert reference["key"] in example[reference["name"]]


def test_commands_are_in_the_image(rendered: list[dict[str, Any]]) -> None:
    for container in containers(rendered):
        if container["name"] == "pre-upgrade-migration":  # a script, for a shell that takes it
            (script,) = container["args"]
            script = script.replace("prefect server database upgrade", "true")
            done = subprocess.run(
                [*container["command"], script], capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
        else:
            tini, _, _, entrypoint = container["command"]
            assert f'"{tini}"' in DOCKERFILE and f"> {entrypoint}" in DOCKERFILE
