"""The first use of a backbone in a process may be by several threads at once: shards are cut so."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines import save_pipeline
from tests.toys import save_backbone

PROGRAM = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from albat_core.backbones import open_splitter
from albat_core.backbones.config import BackboneConfig

together = Barrier(2)

def first_use(_):
    together.wait()
    open_splitter(BackboneConfig(kind=sys.argv[1], path=sys.argv[2]))

with ThreadPoolExecutor(2) as pool:
    list(pool.map(first_use, range(2)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "save"), [("language", save_backbone), ("diffusion", save_pipeline)]
)
def test_two_threads_may_be_the_first_to_open_a_backbone(kind: str, save, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", PROGRAM, kind, str(save(tmp_path / "model"))]
    ended = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
