"""What the site has beside docs/: the README, what is linked to, notebooks, reference, map, list.

Pages keep their place in the repository, so a link that works there works on the site as well.
"""

import ast
import os
import re
from pathlib import Path
from textwrap import fill
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from flows.config import starter_config

ROOT = Path(__file__).parent.parent
PACKAGES = ("albat_core", "tasks", "flows")
HOUSE, SETTINGS = "docs/house.md", "docs/settings.md"
MAP, LISTED = "<!-- map -->", "<!-- settings -->"
LINK = re.compile(r"\[([^\[\]]*)\]\(([\w./-]+)(#[\w.-]+)?\)")
NOTEBOOK = ".ipynb"
SHOWN_AS_THEY_ARE = {".md", ".png", ".jpg", ".svg"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Give each page its place in the repository, and add those that docs/ does not have."""
    for file in [f for f in files if f.src_dir == config.docs_dir]:
        files.remove(file)
        path = Path(config.docs_dir, file.src_uri)
        files.append(placed(path, config, file.dest_uri))
        for shown in as_page(path, config) if path.suffix == NOTEBOOK else ():
            files.append(shown)
    project = sorted(ROOT.glob("*.md"))
    for path in project:
        files.append(placed(path, config))
    pages = [ROOT / file.src_uri for file in files.documentation_pages()]
    examples = linked([page for page in pages if page.exists()])  # a notebook's is made here
    for path in examples:
        files.append(placed(path, config))
    for package in PACKAGES:
        for module in modules(ROOT / package):
            content = f"---\ntitle: {label(module)}\n---\n\n::: {dotted(module)}\n"
            files.append(File.generated(config, page_of(module), content=content))
    assert config.nav is not None
    config.nav += [
        {"Examples": [uri(path) for path in examples if path.suffix == ".md"]},
        {"Reference": [section(ROOT / package, config) for package in PACKAGES]},
        {"Project": [uri(path) for path in project if path.name != "README.md"]},
    ]
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to modules into the reference, draw the map, and list the settings."""
    path = ROOT / page.file.src_uri
    if page.file.src_uri == HOUSE:
        assert MAP in markdown, f"{HOUSE} does not say where the map goes"
        return markdown.replace(MAP, house(path, config))
    if page.file.src_uri == SETTINGS:
        assert LISTED in markdown, f"{SETTINGS} does not say where the settings go"
        return markdown.replace(LISTED, settings())
    return LINK.sub(lambda found: led(found, path), markdown)


def placed(path: Path, config: MkDocsConfig, destination: str | None = None) -> File:
    """Return a file of the repository as one of the site: code and licences as plain text."""
    if destination is None and path.suffix not in SHOWN_AS_THEY_ARE:
        destination = uri(path) + ".txt"
    directories = config.use_directory_urls
    file = File(uri(path), str(ROOT), config.site_dir, directories, dest_uri=destination)
    if path.name == "README.md" and path.parent != ROOT:
        file.name = path.parent.name  # a card among others does not open their section
    return file


def as_page(notebook: Path, config: MkDocsConfig) -> list[File]:
    """Return a notebook as a page, with the pictures that were drawn in it."""
    of_name = {"unique_key": notebook.stem}
    text, resources = MarkdownExporter().from_filename(str(notebook), of_name)
    page = File.generated(config, uri(notebook.with_suffix(".md")), content=text)
    drawn = resources["outputs"].items()
    return [page, *(File.generated(config, uri(notebook.parent / n), content=c) for n, c in drawn)]


def linked(pages: list[Path]) -> list[Path]:
    """Return the files that pages link to, and those that these link to in turn."""
    found, to_read = set(pages), list(pages)
    while to_read:
        page = to_read.pop()
        for _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
            path = resolved(page, target)
            path = path / "README.md" if path.is_dir() else path
            if path in found or not path.is_file() or is_module(path):
                continue
            found.add(path)
            if path.suffix == ".md":
                to_read.append(path)
    beside = (path for path in found.difference(pages) if not path.is_relative_to(ROOT / "docs"))
    return sorted(beside)


def led(found: re.Match[str], page: Path) -> str:
    """Return a link as the site has it; a folder without a page of its own is not linked to."""
    text, target, anchor = found.groups()
    path = resolved(page, target)
    if path.is_dir():
        package, card = path / "__init__.py", path / "README.md"
        path = package if is_module(package) else card
        if not path.is_file():
            return str(text)
    if is_module(path):
        return f"[{text}]({relative(page_of(path), page)}{anchor or ''})"
    if path.suffix == NOTEBOOK:
        path = path.with_suffix(".md")
    return f"[{text}]({relative(uri(path), page)}{anchor or ''})"


def resolved(page: Path, target: str) -> Path:
    """Return what a page's link means."""
    return Path(os.path.normpath(page.parent / target))


def relative(target: str, page: Path) -> str:
    """Return how a page links to a place of the site."""
    return Path(os.path.relpath(ROOT / target, page.parent)).as_posix()


def uri(path: Path) -> str:
    """Return a file's place in the repository."""
    return Path(os.path.relpath(path, ROOT)).as_posix()


def modules(folder: Path) -> list[Path]:
    """Return the modules of a package, its own first, then those of the packages in it."""
    return sorted(folder.rglob("*.py"), key=lambda p: (p.parent, p.name != "__init__.py", p.name))


def is_module(path: Path) -> bool:
    """Tell whether the reference has a page for a file."""
    return path.suffix == ".py" and uri(path).partition("/")[0] in PACKAGES


def dotted(module: Path) -> str:
    """Return the name that a module is imported by."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def label(module: Path) -> str:
    """Return a module's name in the navigation."""
    return dotted(module).rpartition(".")[2]


def page_of(module: Path) -> str:
    """Return where a module's reference is; `index.md`, of packages only, opens their section."""
    packages = module.name == "__init__.py"
    return f"reference/{dotted(module)}" + ("/index.md" if packages else ".md")


def rooms(folder: Path, config: MkDocsConfig) -> list[Path]:
    """Return the packages in a package, in the order that `extra.rooms` of mkdocs.yml gives."""
    order = config.extra["rooms"]
    found = [path.parent for path in folder.glob("*/__init__.py")]
    return sorted(
        found, key=lambda p: (order.index(p.name) if p.name in order else len(order), p.name)
    )


def section(package: Path, config: MkDocsConfig) -> dict[str, Any]:
    """Return a package's part of the navigation."""
    here = [page_of(path) for path in modules(package) if path.parent == package]
    return {package.name: here + [section(room, config) for room in rooms(package, config)]}


def house(page: Path, config: MkDocsConfig) -> str:
    """Return the map: every module with the first line of its docstring, room by room."""
    return "\n".join(line for name in PACKAGES for line in room_lines(ROOT / name, page, config))


def room_lines(room: Path, page: Path, config: MkDocsConfig) -> list[str]:
    """Return a room's part of the map, and then the rooms' in it."""
    own, *others = [path for path in modules(room) if path.parent == room]
    level = "##" if room.parent == ROOT else "###"
    lines = [f"{level} [{uri(room)}/]({relative(page_of(own), page)})", "", first_line(own), ""]
    if others:
        lines += ["| file | what it is |", "|---|---|"]
        for path in others:
            says = first_line(path).replace("|", r"\|")
            lines.append(f"| [{path.name}]({relative(page_of(path), page)}) | {says} |")
        lines.append("")
    for inner in rooms(room, config):
        lines += room_lines(inner, page, config)
    return lines


def settings() -> str:
    """Return every setting with its default: a heading for each section of a configuration."""
    _, *sections = starter_config().rstrip().split("\n\n")
    parts = []
    for section_ in sections:
        says, _, keys = section_.removeprefix("# ").partition("\n")
        name = keys.removeprefix("#").partition(":")[0]
        listed = "\n".join(map(wrapped, keys.split("\n")))
        parts.append(f"## {name}\n\n{says}\n\n```yaml\n{listed}\n```\n")
    return "\n".join(parts)


def wrapped(line: str) -> str:
    """Return a line of YAML, a comment on as many lines as a page has room for."""
    indent, mark, text = line.partition("# ")
    if indent.strip() or not mark:
        return line
    return fill(text, 96, initial_indent=indent + mark, subsequent_indent=indent + mark)


def first_line(module: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").partition("\n")[
        0
    ]
