"""The rules of the house, held by reading imports and syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.house import circles, imports, modules, room_of
from tasks import stages

ROOT = Path(__file__).parent.parent
CORE, TASKS, FLOWS = "albat_core", "tasks", "flows"

ORDER = (
    "redaction",
    "errors",
    "progress",
    "seeding",
    "store",
    "trackers",
    "devices",
    "processes",
    "memory",
    "pictures",
    "search",
    "records",
    "sources",
    "backbones",
    "measures",
    "training",
    "scorers",
    "report",
    "stages",
    "runs",
    "benchmark",
    "pruning",
)
"""The rooms of the core from the ground up: each imports from those before it alone."""

MOST_ROOMS = 22
LONG_FILE = 400

HOMES = {
    "datatrove": {"albat_core/sources/filters.py"},
    "accelerate": {"albat_core/processes/group.py"},
    "mlflow": {"albat_core/trackers/mlflow.py"},
    "tensorboard": {"albat_core/trackers/tensorboard.py"},
    "trackio": {"albat_core/trackers/trackio.py"},
    "wandb": {"albat_core/trackers/wandb.py"},
    "bitsandbytes": {"albat_core/training/optimizers.py"},  # transformers and peft import it too
    "prodigyopt": {"albat_core/training/optimizers.py"},
    "faiss": {"albat_core/search/library.py", "albat_core/search/index.py"},
    "gguf": {"albat_core/backbones/language/gguf.py"},
    "datasets": {"albat_core/sources/hub.py", "albat_core/measures/lm_eval.py"},
    "evaluate": {"albat_core/measures/lm_eval.py"},
    "lm_eval": {"albat_core/measures/lm_eval.py"},
    "fsspec": {"albat_core/store/storage.py"},
    "huggingface_hub": {"albat_core/backbones/folder.py", "albat_core/runs/pushing.py"},
    "s3fs": set[str](),
    "diffusers": {
        "albat_core/backbones/diffusion/loading.py",
        "albat_core/backbones/diffusion/single_file.py",
    },
    "peft": {
        "albat_core/backbones/adapters.py",
        "albat_core/backbones/diffusion/adapter.py",
        "albat_core/backbones/language/adapter.py",
        "albat_core/backbones/language/model.py",
    },
    "transformers": {
        "albat_core/backbones/diffusion/captions.py",
        "albat_core/backbones/language/description.py",
        "albat_core/backbones/language/gguf.py",
        "albat_core/backbones/language/model.py",
        "albat_core/backbones/language/quantization.py",
        "albat_core/backbones/language/tokens.py",
        "albat_core/backbones/vision.py",
        "albat_core/training/optimizers.py",
        "albat_core/training/schedules.py",
    },
    "matplotlib": {"albat_core/report/drawing.py", "albat_core/benchmark/chart.py"},
    "PIL": {"albat_core/pictures.py"},
    "sentence_transformers": {"albat_core/backbones/language/sentences.py"},
    "rouge_score": {"albat_core/measures/metrics.py"},
    "typer": {
        f"flows/cli/{n}.py"
        for n in [
            "__init__",
            "adapters",
            "app",
            "benchmarks",
            "look",
            "models",
            "production",
            "pruning",
            "runs",
        ]
    },
    "psutil": {"albat_core/memory.py", "flows/local/processes.py", "flows/local/production.py"},
    "rich": {"flows/console.py", "flows/showing.py"},
}
"""Files that may import a library."""

LOOK_UP = {
    "albat_core/backbones/__init__.py",  # the table of kinds
    "albat_core/backbones/config.py",  # the names that settings may have
}
MODALITIES = {"language", "diffusion"}


def paths(*packages: str) -> list[Path]:
    found = [path for package in packages for path in modules(ROOT / package)]
    assert found
    return found


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def top(module: str) -> str:
    return module.partition(".")[0]


def importers(package: str) -> set[str]:
    """Files of the project that import a package."""
    return {
        named(path)
        for path in paths(CORE, TASKS, FLOWS)
        if any(top(module) == package for module in imports(path))
    }


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [(CORE, {TASKS, FLOWS, "infra", "prefect"}), (TASKS, {FLOWS, "infra"}), (FLOWS, {"infra"})],
)
def test_layers_import_downwards_only(package: str, forbidden: set[str]) -> None:
    for path in paths(package):
        assert not {top(module) for module in imports(path)} & forbidden, path


def test_every_room_has_its_place_and_imports_from_those_below() -> None:
    rooms = {room_of(path, ROOT / CORE) for path in paths(CORE)} - {"__init__"}
    assert rooms == set(ORDER)
    assert len(rooms) <= MOST_ROOMS
    for path in paths(CORE):
        room = room_of(path, ROOT / CORE)
        for module in imports(path):
            if top(module) != CORE or module == CORE:
                continue
            other = module.split(".")[1]
            lower = ORDER.index(other) < ORDER.index(room)
            assert lower or other == room, f"{named(path)} imports {module}"


def test_there_is_no_circle_of_imports() -> None:
    assert circles(ROOT / CORE) == []


def test_no_stage_imports_a_stage() -> None:
    found = [p for p in paths(CORE) if p.parent.name == "stages" and p.stem != "__init__"]
    assert len(found) >= 15
    for path in found:
        others = [module for module in imports(path) if module.startswith(f"{CORE}.stages")]
        assert not others, f"{named(path)} imports {', '.join(others)}"


@pytest.mark.parametrize("library", HOMES)
def test_a_library_is_used_in_its_own_room(library: str) -> None:
    assert importers(library) <= HOMES[library]


def stage_functions() -> dict[str, set[str]]:
    """Functions of each core module that produce an artifact."""
    found: dict[str, set[str]] = {}
    for path in paths(CORE):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for node in tree(path).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(call, ast.Call)
                and isinstance(call.func, ast.Attribute)
                and call.func.attr == "produce"
                for call in ast.walk(node)
            ):
                found.setdefault(name, set()).add(node.name)
    return found


def test_stages_stand_in_their_room_and_are_lifted_by_tasks() -> None:
    found = stage_functions()
    assert len(found) >= 15
    assert {module.split(".")[1] for module in found} <= {"stages", "benchmark"}
    lifted = {f"{function.__module__}.{function.__name__}" for function in stages.TASKS}
    assert {f"{module}.{name}" for module, names in found.items() for name in names} <= lifted


def test_flows_compute_nothing() -> None:
    heavy = {"torch", "numpy", "pyarrow", "transformers", "peft", "faiss", "scipy"}
    for path in paths(FLOWS):
        assert not {top(module) for module in imports(path)} & heavy, path


def modality_branches(code: ast.Module, *, in_backbones: bool = False) -> Iterator[int]:
    """Yield the lines that decide by what kind of backbone there is.

    A kind is looked at (``backbone.kind``), named (``"diffusion"``) where it is compared or looked
    up, or asked for by class.
    """
    for node in ast.walk(code):
        if isinstance(node, ast.Attribute) and node.attr == "kind":
            owner = ast.unparse(node.value).lower()
            if "backbone" in owner or (in_backbones and owner in ("config", "self._config")):
                yield node.lineno
        parts: list[ast.expr | None] = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Dict):
            parts = list(node.keys)
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Subscript):
            parts = [node.slice]
        for part in parts:
            for each in ast.walk(part) if part is not None else ():
                if isinstance(each, ast.Constant) and each.value in MODALITIES:
                    yield node.lineno
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            kinds = ("Backbone", "Kind")
            if any(n.id.endswith(kinds) for n in ast.walk(node) if isinstance(n, ast.Name)):
                yield node.lineno


def test_no_branch_on_modality_outside_the_look_up() -> None:
    for path in paths(CORE, TASKS, FLOWS):
        if named(path) in LOOK_UP:
            continue
        inside = "backbones" in path.parts
        lines = list(modality_branches(tree(path), in_backbones=inside))
        assert not lines, f"{named(path)}:{lines} branches on modality"


@pytest.mark.parametrize(
    "line",
    [
        "alpha = 0.9 if run.backbone.kind == 'language' else 0.5",
        "usual = {'language': 0.3, 'diffusion': 0.0}[kind]",
        "if kind in ('diffusion',): pass",
        "value = settings['diffusion']",
        "if isinstance(backbone, LanguageBackbone): pass",
        "match kind:\n    case 'diffusion': pass",
        "penalty = backbone_config.kind",
    ],
)
def test_a_branch_on_modality_would_be_found(line: str) -> None:
    assert list(modality_branches(ast.parse(line)))


def test_there_is_one_training_loop() -> None:
    stepping = [path for path in paths(CORE) if "optimizer.step()" in path.read_text()]
    assert [path.name for path in stepping] == ["trainer.py"]


PICKLING = {"pickle", "shelve", "dill", "cloudpickle", "joblib"}


def test_no_pickle_is_read() -> None:
    for path in paths(CORE, TASKS, FLOWS):
        text = path.read_text()
        assert not PICKLING & {top(module) for module in imports(path)}, path
        assert "torch.load" not in text, path
        assert "allow_pickle=True" not in text, path
        assert text.count("np.load(") == text.count("allow_pickle=False"), path


def test_no_module_is_a_drawer() -> None:
    for path in paths(CORE, TASKS, FLOWS):
        assert path.stem not in {"utils", "helpers", "common", "misc"}, path
        assert len(path.read_text().splitlines()) <= LONG_FILE, f"{path} is long: look at it"


def public_definitions(parent: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    found = []
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node)
    return found


def test_public_functions_say_what_they_do() -> None:
    for path in paths(CORE):
        for node in public_definitions(tree(path)):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
