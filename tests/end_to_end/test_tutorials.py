"""Tutorials and how-to pages work as they are written, with fewer steps and less of the corpus."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.end_to_end.s3_server import Served, needs_rclone

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(
    r'(?P<skip><!-- not run: [^>]+ -->\n)?```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<code>.*?)```",
    re.DOTALL,
)
SHORTER = [
    (r"steps: \d+", "steps: 4"),
    (r"share: [\d.]+", "share: 0.5"),
    (r"rows: \d+", "rows: 16"),
    (r"candidates: \d+", "candidates: 60"),
]
PART, LEAST = 0.1, 60  # of a table's rows


def to_run(page: Path) -> list[re.Match[str]]:
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block for block in blocks if block["language"] == "sh" and not block["skip"]]


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
HOW_TO = [page for page in sorted((ROOT / "docs" / "how-to").glob("*.md")) if to_run(page)]


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples with the first rows of their tables."""
    folder = tmp_path_factory.mktemp("examples")
    for file in (ROOT / "examples").rglob("*.*"):
        there = folder / file.relative_to(ROOT / "examples")
        there.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            rows = pq.read_table(file)
            pq.write_table(rows.slice(0, max(round(PART * rows.num_rows), LEAST)), there)
        elif file.is_file():
            there.symlink_to(file)
    return folder


@pytest.mark.end_to_end
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_runs(page: Path, tmp_path: Path, examples: Path) -> None:
    follow(page, tmp_path, examples)


@pytest.mark.end_to_end
@needs_rclone
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_command_of_a_how_to_runs(
    page: Path, tmp_path: Path, examples: Path, s3: Served
) -> None:
    follow(page, tmp_path, examples)


def follow(page: Path, tmp_path: Path, examples: Path) -> None:
    """Write the files that a page shows and run its commands, in the order in which they stand."""
    (tmp_path / "examples").symlink_to(examples)
    blocks = list(BLOCK.finditer(page.read_text(encoding="utf-8")))
    assert to_run(page)
    try:
        for block in blocks:
            if block["title"]:
                (tmp_path / block["title"]).write_text(shorter(block["code"]))
            elif block["language"] == "sh" and not block["skip"]:
                run(block["code"], tmp_path)
    finally:
        run("albat down", tmp_path)


def shorter(text: str) -> str:
    for pattern, less in SHORTER:
        text = re.sub(pattern, less, text)
    return text


def run(commands: str, folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env={**os.environ, "PATH": path, "PREFECT_HOME": str(folder / "prefect")},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
