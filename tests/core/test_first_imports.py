"""What is imported: settings, stages and chain need no model library, the command none at all."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = sorted(
    f"albat_core.stages.{path.stem}"
    for path in (ROOT / "albat_core" / "stages").glob("*.py")
    if path.stem != "__init__"
)
MODELS = ("torch", "transformers", "diffusers", "peft", "faiss", "matplotlib", "scipy")
MODELS += (
    "datasets",
    "mlflow",
    "tensorboard",
    "trackio",
    "wandb",
    "datatrove",
    "rouge_score",
    "sentence_transformers",
)


def imported(code: str) -> set[str]:
    """Return what a fresh Python has imported after some code, libraries by their name alone."""
    code += "\nimport sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (["albat_core.runs.config"], (*MODELS, "prefect")),
        ([*STAGES, "albat_core.runs.chain", "albat_core.benchmark.table"], (*MODELS, "prefect")),
        (["tasks.stages", "flows.albat", "flows.watching"], MODELS),
        (["flows.cli"], (*MODELS, "prefect", "pyarrow", "numpy", "pydantic")),
    ],
    ids=["settings", "chain", "flows", "command"],
)
def test_nothing_heavy_is_imported_for(modules: list[str], without: tuple[str, ...]) -> None:
    assert len(STAGES) >= 15
    there = imported("\n".join(f"import {module}" for module in modules))
    assert not there & set(without)
    assert modules[0].partition(".")[0] in there


def test_help_is_told_without_prefect_s_server() -> None:
    code = "import sys; sys.argv = ['albat', '--help']\nfrom flows.cli import main\n"
    there = imported(code + "try:\n    main()\nexcept SystemExit:\n    pass\n")
    assert not there & {*MODELS, "prefect"}
