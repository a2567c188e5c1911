"""The rules of the house, held by reading imports and syntax trees."""

import ast
from pathlib import Path

import pytest

from tasks import stages

ROOT = Path(__file__).parent.parent
CORE, TASKS, FLOWS = "albat_core", "tasks", "flows"
LONGEST_FILE = 380
ORDER = (
    "errors",
    "seeding",
    "progress",
    "store/stage",
    "store/storage",
    "store/claims",
    "store/artifacts",
    "records/tables",
    "records/examples",
)


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no modules below {package}"
    return found


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def imports(path: Path) -> list[tuple[str, str]]:
    """Every (module, name) that a file imports anywhere in it; name is "" for whole modules."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


def importers(package: str) -> set[str]:
    """Files of the project, by path, that import a package."""
    return {
        str(path.relative_to(ROOT))
        for folder in (CORE, TASKS, FLOWS)
        for path in modules(folder)
        if any(top(module) == package for module, _ in imports(path))
    }


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [(CORE, {TASKS, FLOWS, "infra", "prefect"}), (TASKS, {FLOWS, "infra"}), (FLOWS, {"infra"})],
)
def test_layers_import_downwards_only(package: str, forbidden: set[str]) -> None:
    for path in modules(package):
        assert not {top(module) for module, _ in imports(path)} & forbidden, path


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("faiss", {"albat_core/search.py"}),
        ("fsspec", {"albat_core/store/storage.py"}),
        ("s3fs", set()),
        ("diffusers", {"albat_core/backbones/diffusion/loading.py"}),
        (
            "peft",
            {"albat_core/backbones/language/model.py", "albat_core/backbones/diffusion/adapter.py"},
        ),
        (
            "transformers",
            {
                f"albat_core/backbones/{n}.py"
                for n in ("language/model", "language/tokens", "diffusion/captions", "vision")
            },
        ),
        ("matplotlib", {"albat_core/report/drawing.py"}),
        ("PIL", {"albat_core/pictures.py"}),
        (
            "typer",
            {
                f"flows/cli/{n}.py"
                for n in ("__init__", "adapters", "app", "look", "production", "runs")
            },
        ),
        ("psutil", {"flows/processes.py", "flows/production.py"}),
        ("rich", {"flows/console.py"}),
    ],
)
def test_a_library_is_used_in_its_own_room(library: str, home: set[str]) -> None:
    assert importers(library) <= home


def test_foundations_do_not_import_what_stands_on_them() -> None:
    for place, name in enumerate(ORDER):
        below = {f"{CORE}.{n.replace('/', '.')}" for n in ORDER[:place]}
        for module, imported in imports(ROOT / CORE / f"{name}.py"):
            if top(module) == CORE:
                whole = (
                    f"{module}.{imported}"
                    if module in (CORE, f"{CORE}.store", f"{CORE}.records")
                    else module
                )
                assert whole in below, f"{name}.py imports {whole}"


def stage_functions() -> dict[str, set[str]]:
    """Functions of each core module that produce an artifact."""
    found: dict[str, set[str]] = {}
    for path in modules(CORE):
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


def test_stages_read_each_other_s_artifacts_but_never_call_each_other() -> None:
    producing = stage_functions()
    assert len(producing) >= 10
    for path in modules(CORE):
        if "runs" in path.parts:  # the one place that orders them
            continue
        for module, name in imports(path):
            assert name not in producing.get(module, set()), f"{path} calls the stage {name}"


def test_every_stage_is_lifted_by_a_task() -> None:
    lifted = {f"{function.__module__}.{function.__name__}" for function in stages.TASKS}
    found = {f"{m}.{name}" for m, names in stage_functions().items() for name in names}
    assert found <= lifted


def test_flows_compute_nothing() -> None:
    heavy = {"torch", "numpy", "pyarrow", "transformers", "peft", "faiss"}
    for path in modules(FLOWS):
        assert not {top(module) for module, _ in imports(path)} & heavy, path


def test_no_branch_on_modality_outside_the_look_up() -> None:
    for path in modules(CORE) + modules(TASKS) + modules(FLOWS):
        if path.name in ("base.py", "__init__.py") and path.parent.name == "backbones":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Attribute) and node.attr == "kind":
                owner = ast.unparse(node.value)
                assert "backbone" not in owner, f"{path}:{node.lineno} branches on modality"


def test_there_is_one_training_loop() -> None:
    stepping = [path for path in modules(CORE) if "optimizer.step()" in path.read_text()]
    assert [path.name for path in stepping] == ["trainer.py"]


def test_no_pickle_is_read() -> None:
    for path in modules(CORE) + modules(TASKS) + modules(FLOWS):
        text = path.read_text()
        assert "pickle" not in {top(m) for m, _ in imports(path)}, path
        assert "torch.load" not in text, path
        assert "allow_pickle=True" not in text, path
        assert text.count("np.load(") == text.count("allow_pickle=False"), path


def test_no_module_is_a_drawer() -> None:
    for path in modules(CORE) + modules(TASKS) + modules(FLOWS):
        assert path.stem not in {"utils", "helpers", "common", "misc"}, path
        assert len(path.read_text().splitlines()) <= LONGEST_FILE, f"{path} is too long"


def public_definitions(parent: ast.Module | ast.ClassDef) -> list[ast.FunctionDef | ast.ClassDef]:
    found = []
    for node in parent.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += public_definitions(node)
    return found


def test_public_functions_say_what_they_do() -> None:
    for path in modules(CORE):
        for node in public_definitions(tree(path)):
            assert ast.get_docstring(node), f"{path}:{node.lineno} {node.name}"
