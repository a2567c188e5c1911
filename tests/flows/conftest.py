"""What the tests of flows share: a toy run on disk, and the command run in this process."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flows import cli
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
