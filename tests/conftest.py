"""What tests of the core share: a tiny backbone, and the stages run on it once."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.stages.shard import ShardConfig, make_shards
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from flows.config import load_config
from tests.toys import write_jsonl, write_run

Cut = Callable[..., ArtifactRef]

torch.set_num_threads(1)  # toys are too small to share among cores


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where tests run side by side, begin with the long ones: the short ones fill up the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("end_to_end") is None)


@pytest.fixture(scope="session")
def run_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run on toys: 120 corpus rows of two topics, 40 adaptation rows of one of them."""
    return load_config(str(write_run(tmp_path_factory.mktemp("run"))))


@pytest.fixture(scope="session")
def chain(run_config: RunConfig) -> Chain:
    """The stages of that run, each computed once, when a test asks for it."""
    return Chain(run_config)


@pytest.fixture(scope="session")
def store(run_config: RunConfig) -> ArtifactStore:
    """Where that run's artifacts are."""
    return ArtifactStore(run_config.runtime.root)


@pytest.fixture(scope="session")
def backbone_config(run_config: RunConfig) -> BackboneConfig:
    return run_config.backbone


@pytest.fixture(scope="session")
def backbone_folder(backbone_config: BackboneConfig) -> Path:
    return Path(backbone_config.path)


@pytest.fixture
def backbone(run_config: RunConfig) -> Iterator[LanguageBackbone]:
    """The tiny backbone, untouched before and after."""
    with open_backbone(run_config.backbone, run_config.runtime) as opened:
        yield opened


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """A root of the test's own."""
    return Runtime(root=str(tmp_path / "artifacts"), device="cpu")


@pytest.fixture
def cut(tmp_path: Path, backbone_config: BackboneConfig, runtime: Runtime) -> Cut:
    """Make shards of rows, in the test's own root unless told otherwise."""

    def run(name: str, rows: list[dict], where: Runtime = runtime) -> ArtifactRef:
        path = write_jsonl(tmp_path / f"{name}.jsonl", rows)
        source = SourceConfig(path=str(path), id_column="id", document_column="doc")
        (file,) = find_files(source)
        return make_shards(file, backbone_config, ShardConfig(rows=16), where)

    return run
