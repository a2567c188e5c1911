"""What tests of trainings share: two of them, each below a root of its own."""

from pathlib import Path

import pytest

from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from tests.core.trainings import Training


@pytest.fixture
def training(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "one")


@pytest.fixture
def another(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "two")
