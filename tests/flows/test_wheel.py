"""What `pip install albat[cpu,demo]` brings: the command, without a clone of the repository."""

import os
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("albat_core", "flows", "tasks")
FILES = ("pyproject.toml", "README.md", "LICENSE", "prefect.yaml")
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
FIRST = "✓ cut corpus"

pytestmark = pytest.mark.slow


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def files(folder: Path, root: Path) -> Iterator[str]:
    return (str(path.relative_to(root)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with albat and its demo, from their wheels.

    What they need is that of the environment that runs the tests: its folders are on the path,
    but no link to a clone that they hold is followed from there.
    """
    folder = tmp_path_factory.mktemp("wheel")
    sources = folder / "albat"
    for name in (*PACKAGES, "examples"):
        shutil.copytree(ROOT / name, sources / name, ignore=MADE)
    for name in FILES:
        shutil.copy(ROOT / name, sources)
    alone = ("--no-deps", "--no-index")
    pip("wheel", *alone, "--no-build-isolation", "-w", folder, sources, sources / "examples")
    made = folder / "environment"
    venv.create(made)
    (packages,) = made.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    pip("--python", made / "bin" / "python", "install", *alone, *folder.glob("*.whl"))
    written = {file for name in PACKAGES for file in files(sources / name, sources)}
    assert written <= set(files(packages, packages))
    shutil.rmtree(sources)
    return made


@pytest.fixture
def inside(environment: Path, tmp_path: Path) -> dict[str, object]:
    """How a program of that environment is started, in an empty folder."""
    variables = {n: v for n, v in os.environ.items() if n != "PYTHONPATH"}
    return {"cwd": tmp_path, "env": variables | {"COLUMNS": "300"}, "text": True}


def output(inside: dict[str, object], *command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, check=False, **inside)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_all_of_it_is_of_the_wheel(environment: Path, inside: dict[str, object]) -> None:
    code = "import albat_core, flows.cli, tasks; print(albat_core, flows.cli, tasks)"
    said = output(inside, environment / "bin" / "python", "-c", code)
    assert said.count(str(environment)) == 3
    assert "the whole chain" in output(inside, environment / "bin" / "albat", "--help").lower()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_the_demos_inputs_are_installed(
    environment: Path, inside: dict[str, object], kind: str
) -> None:
    (config,) = environment.glob(f"lib/python*/site-packages/albat_demo/{kind}/demo.yaml")
    said = output(inside, environment / "bin" / "albat", "check", config)
    assert "no mistakes found" in said


@pytest.mark.end_to_end
def test_the_demo_runs(environment: Path, inside: dict[str, object]) -> None:
    demo = subprocess.Popen(
        [environment / "bin" / "albat", "demo"], stdout=subprocess.PIPE, **inside
    )
    assert demo.stdout is not None
    said = ""
    for line in demo.stdout:
        said += line
        if FIRST in line:  # all of its inputs were read
            break
    demo.send_signal(signal.SIGINT)
    said += demo.stdout.read()
    assert (demo.wait(), FIRST in said) == (130, True), said
