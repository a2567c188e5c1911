"""What can be checked of the trial without starting anything."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings

from albat_core.errors import MissingDependencyError
from albat_core.runs.config import RunConfig

SCRIPT = Path(__file__).parents[2] / "infra" / "try_production.py"


@pytest.fixture(scope="module")
def trial() -> ModuleType:
    spec = spec_from_file_location("try_production", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_postgresql_it_says_what_to_install(
    trial: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trial, "DEBIAN", tmp_path)
    with pytest.raises(MissingDependencyError, match="apt-get install -y postgresql"):
        trial.postgresql()


def test_of_debian_s_postgresqls_the_newest_is_taken(
    trial: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(trial, "DEBIAN", tmp_path)
    for version in ("9.6", "15", "17"):
        folder = tmp_path / version / "bin"
        folder.mkdir(parents=True)
        for program in ("initdb", "postgres", "psql")[: 2 if version == "17" else 3]:
            (folder / program).touch()
    assert trial.postgresql() == tmp_path / "15" / "bin"


def test_its_run_is_sound_and_finds_its_inputs(trial: ModuleType, tmp_path: Path) -> None:
    config = RunConfig.model_validate(trial.tiny(tmp_path, "try"))
    for each in (config.backbone, *config.corpus, *config.adaptation):
        assert list(Path("/").glob(each.path.lstrip("/"))), each.path
    assert Path(config.runtime.root).is_relative_to(tmp_path)


def test_it_sets_only_what_prefect_reads() -> None:
    known = {name for name in _get_settings_fields(Settings) if name.isupper()}
    named = set(re.findall(r'"(PREFECT_\w+)"', SCRIPT.read_text()))
    assert named and named <= known
