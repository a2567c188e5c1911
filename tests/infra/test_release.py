"""The release workflow follows GitHub's schema, and publishes what was tested and nothing else."""

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def release() -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    found = yaml.safe_load(text)
    return {"on" if key is True else key: value for key, value in found.items()}  # YAML 1.1's "on"


def commands(job: dict[str, Any]) -> str:
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


def test_it_follows_githubs_schema(release: dict[str, Any]) -> None:
    schema = Draft7Validator(get_builtin_schema("vendor.github-workflows"))
    assert list(schema.iter_errors(release)) == []
    assert list(schema.iter_errors(release | {"jbos": {}}))  # it would be seen


def test_only_a_tag_that_was_tested_is_published(release: dict[str, Any]) -> None:
    jobs = release["jobs"]
    assert release["on"]["push"] == {"tags": ["v*"]}
    assert set(jobs["publish"]["needs"]) == jobs.keys() - {"publish"}
    assert jobs["publish"]["if"] == "github.ref_type == 'tag'"
    checks = (ROOT / ".ci").glob("*")
    wanted = [line for path in checks for line in path.read_text().splitlines() if "make " in line]
    assert wanted
    assert commands(jobs["test"]).splitlines() == wanted


def test_only_what_publishes_may_sign(release: dict[str, Any]) -> None:
    assert release["permissions"] == {"contents": "read"}
    asking = {name for name, job in release["jobs"].items() if "permissions" in job}
    assert asking == {"publish"}
    assert not [step for step in release["jobs"]["publish"]["steps"] if "run" in step]


def test_both_wheels_are_built_with_the_python_that_is_tested(release: dict[str, Any]) -> None:
    built = commands(release["jobs"]["build"])
    assert "wheel --no-deps --wheel-dir dist . ./examples" in built
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    for job in ("test", "build"):
        steps = release["jobs"][job]["steps"]
        [python] = [s["with"] for s in steps if s.get("uses", "").startswith("actions/setup-py")]
        assert oldest == f">={python['python-version']}"


def test_zizmor_finds_no_way_in() -> None:
    zizmor = Path(sys.executable).parent / "zizmor"
    given = ["--offline", "--no-progress", str(ROOT / ".github" / "workflows")]
    done = subprocess.run([zizmor, *given], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
