"""What tests share: two trainings, each below a root of its own, and stores of both kinds."""

import tempfile
from pathlib import Path

import pytest

from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from tests.core.trainings import Training


@pytest.fixture
def training(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "one")


@pytest.fixture
def another(chain: Chain, run_config: RunConfig, tmp_path: Path) -> Training:
    return Training(chain, run_config, tmp_path / "two")


@pytest.fixture(params=["local", "memory"])
def anywhere(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """A store on this machine, and one that counts as remote; drafts and copies beside them."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local = request.param == "local"
    return ArtifactStore(str(tmp_path / "root") if local else f"memory://{tmp_path}/root")
