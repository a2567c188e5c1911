"""Draw the house in figures: its rooms, the floors they stand on, and the imports between them.

A room is a module directly in the package, or a folder with all in it; a room stands one floor
above the highest that it imports. ``python -m bench.house`` prints them.
"""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path


def modules(package: Path) -> list[Path]:
    """Return the files of a package."""
    return sorted(package.rglob("*.py"))


@cache
def imports(path: Path) -> tuple[str, ...]:
    """Return the modules that a file imports anywhere in it, names that are modules whole."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
        if isinstance(node, ast.Import):
            found |= dict.fromkeys(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: relative import"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= dict.fromkeys(name for name in sorted(whole) if is_module(name, path))
            if any(not is_module(name, path) for name in whole):
                found[node.module] = None
    return tuple(found)


@cache
def is_module(name: str, beside: Path) -> bool:
    """Tell whether a dotted name is a module of the project that a file is of."""
    root = next((p for p in beside.parents if (p / "pyproject.toml").exists()), beside.parent)
    place = root.joinpath(*name.split("."))
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def room_of(path: Path, package: Path) -> str:
    """Return the room that a file of a package is in."""
    return path.relative_to(package).parts[0].removesuffix(".py")


def arrows(package: Path, *, rooms: bool) -> dict[str, set[str]]:
    """Return what imports what, by room or by module."""
    found: dict[str, set[str]] = defaultdict(set)
    names = {}
    for path in modules(package):
        parts = path.relative_to(package.parent).with_suffix("").parts
        names[".".join(parts).removesuffix(".__init__")] = path
    for name, path in names.items():
        here = room_of(path, package) if rooms else name
        found[here] |= set()
        for module in imports(path):
            if module in names and module != package.name:
                there = room_of(names[module], package) if rooms else module
                if there != here:
                    found[here].add(there)
    found.pop("__init__", None)
    return found


def floors(graph: Mapping[str, set[str]]) -> dict[str, int]:
    """Return the floor of each, from 1; what stands in a circle has none."""
    found: dict[str, int] = {}
    while True:
        free = [n for n in graph if n not in found and graph[n] <= found.keys()]
        if not free:
            return found
        found |= {n: 1 + max((found[o] for o in graph[n]), default=0) for n in free}


def circles(package: Path) -> list[str]:
    """Return the modules that import each other in a circle, or stand above one.

    A package's own ``__init__`` may import what is in it: Python has it so.
    """
    graph = arrows(package, rooms=False)
    for name, others in graph.items():
        others -= {other for other in others if name.startswith(f"{other}.")}
    return sorted(graph.keys() - floors(graph).keys())


def lines(package: Path) -> Iterator[str]:
    """Yield what is printed."""
    for what, rooms in (("rooms", True), ("modules", False)):
        graph = arrows(package, rooms=rooms)
        high = floors(graph)
        count = sum(map(len, graph.values()))
        loose = len(graph) - len(high)
        yield (
            f"{package.name}: {len(graph)} {what} on {max(high.values(), default=0)} floors, "
            f"{count} arrows, {loose} in circles"
        )
    graph = arrows(package, rooms=True)
    high = floors(graph)
    for floor in sorted(set(high.values()), reverse=True):
        yield f"  {floor:2d}  {'  '.join(sorted(n for n in graph if high.get(n) == floor))}"


if __name__ == "__main__":
    print("\n".join(lines(Path(sys.argv[1] if len(sys.argv) > 1 else "albat_core"))))
