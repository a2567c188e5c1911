"""What the tests of flows share: a toy run on disk, and the command run in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from albat_core.report.content import ReportContent
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.report import read_results
from albat_core.store.artifacts import ArtifactStore
from flows import cli
from flows.config import load_config
from tests.toys import write_run


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Configuration of a toy run whose files no test changes."""
    return write_run(tmp_path_factory.mktemp("toy"))


@dataclass(frozen=True)
class Outcome:
    """What a command came to."""

    code: int
    out: str
    err: str


Albat = Callable[..., Outcome]


@pytest.fixture
def albat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Albat]:
    """Run the command as the terminal does, wide enough that no line is folded."""
    before = dict(os.environ)
    monkeypatch.setenv("COLUMNS", "400")
    for console in ("console", "errors"):  # made with what COLUMNS was then, if any
        monkeypatch.setattr(f"flows.console.{console}.width", 400)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["albat", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Outcome(code, captured.out, captured.err)

    yield run
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def config(path: Path) -> RunConfig:
    """The run whose file a module's own ``path`` gives."""
    return load_config(str(path))


@pytest.fixture(scope="module")
def asked(config: RunConfig) -> Chain:
    """Its stages, each computed once, when a test asks for it."""
    return Chain(config)


@pytest.fixture(scope="module")
def kept(config: RunConfig) -> ArtifactStore:
    """Where its artifacts are."""
    return ArtifactStore(config.runtime.root)


@pytest.fixture(scope="module")
def content(asked: Chain, kept: ArtifactStore) -> ReportContent:
    """What its report says."""
    return read_results(kept, asked.report)
