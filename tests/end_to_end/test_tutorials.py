"""Tutorials and how-to pages work as they are written, with fewer steps and less of the corpus."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.s3_server import Served, needs_rclone

ROOT = Path(__file__).parent.parent.parent
BLOCK = re.compile(
    r'(?P<skip><!-- not run: [^>]+ -->\n)?```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<code>.*?)```",
    re.DOTALL,
)
SHORTER = [(r"steps: \d+", "steps: 4"), (r"share: [\d.]+", "share: 0.05"), ("rows: 64", "rows: 16")]


def to_run(page: Path) -> list[re.Match[str]]:
    blocks = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block for block in blocks if block["language"] == "sh" and not block["skip"]]


TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
HOW_TO = [page for page in sorted((ROOT / "docs" / "how-to").glob("*.md")) if to_run(page)]


@pytest.mark.end_to_end
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_command_of_a_tutorial_runs(page: Path, tmp_path: Path) -> None:
    follow(page, tmp_path)


@pytest.mark.end_to_end
@needs_rclone
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_every_command_of_a_how_to_runs(page: Path, tmp_path: Path, s3: Served) -> None:
    follow(page, tmp_path)


def follow(page: Path, tmp_path: Path) -> None:
    """Write the files that a page shows and run its commands, in the order in which they stand."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
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
