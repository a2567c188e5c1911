"""A new setting at its default changes no key, and no stage changes what it makes unnoticed."""

import json
from typing import Any, ClassVar

import pytest

from albat_core.store.stage import StageConfig, stage_key
from tests.golden import KEPT, Made, record

REMEDY = (
    "raise the stage's STAGE_VERSION, so that nobody is given what an older version made; then "
    "`python -m tests.golden`"
)


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return record(tmp_path_factory.mktemp("golden").resolve())


@pytest.fixture(scope="module")
def then() -> Made:
    made: Made = json.loads(KEPT.read_text())
    return made


def same(name: str, found: Any, kept: Any) -> None:
    """Compare numbers nearly, as processors round otherwise, and all else exactly."""
    if isinstance(kept, dict):
        assert found.keys() == kept.keys(), f"{name}: {REMEDY}"
        for key, value in kept.items():
            same(f"{name}.{key}", found[key], value)
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, rel=2e-2, abs=2e-3), f"{name}: {REMEDY}"
    else:
        assert found == kept, f"{name}: {REMEDY}"


def test_every_step_of_a_run_is_kept(now: Made, then: Made) -> None:
    assert now.keys() == then.keys(), "steps were added or renamed: `python -m tests.golden`"
    assert {each["stage"] for each in now.values()} >= {
        "shards",
        "split",
        "embeddings",
        "queries",
        "index",
        "candidates",
        "adapter",
        "scores",
        "selection",
        "estimate",
        "mixture",
        "evaluation",
        "report",
    }


def test_keys_and_content_change_with_the_stage_s_version_alone(now: Made, then: Made) -> None:
    for label, kept in then.items():
        found = now[label]
        assert found["version"] == kept["version"], f"{label}: `python -m tests.golden`"
        same(f"{label}: settings that are not at their defaults", found["named"], kept["named"])
        same(f"{label}: what it reads", found["inputs"], kept["inputs"])
        same(f"{label}: what it makes", found["content"], kept["content"])


def test_defaults_change_with_the_stage_s_version_alone(now: Made, then: Made) -> None:
    def all_there(name: str, found: Any, kept: Any) -> None:
        if not isinstance(kept, dict):
            same(name, found, kept)
            return
        for key, value in kept.items():  # what is new is at its default, or it would be named
            assert key in found, f"{name}.{key} is gone: {REMEDY}"
            all_there(f"{name}.{key}", found[key], value)

    for label, kept in then.items():
        if kept["stage"] != "report":  # which has the settings of all
            all_there(label, now[label]["shown"], kept["shown"])


def test_a_forgotten_version_would_be_seen(then: Made) -> None:
    kept = then["score"]
    with pytest.raises(AssertionError, match="STAGE_VERSION"):
        same("score", kept["content"] | {"scores.parquet:score": {"mean": 9.0}}, kept["content"])
    scores = dict(kept["content"]["scores.parquet:score"])
    scores["mean"] += 0.1
    changed = kept["content"] | {"scores.parquet:score": scores}
    with pytest.raises(AssertionError, match="STAGE_VERSION"):
        same("score", changed, kept["content"])


class Inner(StageConfig):
    depth: int = 3


class Before(StageConfig):
    rows: int = 10
    inner: Inner = Inner()


class Later(Before):
    known: ClassVar[str] = "no setting"
    fresh: bool = False
    more: Inner = Inner(depth=5)


def test_a_new_setting_at_its_default_changes_no_key() -> None:
    def key(config: StageConfig) -> str:
        return stage_key("any", 1, config.settings(seed=1).named, {})

    assert key(Later(rows=7)) == key(Before(rows=7))
    assert key(Later(inner=Inner(depth=4))) == key(Before(inner=Inner(depth=4)))
    assert key(Later(fresh=True)) != key(Before())
    assert key(Later(more=Inner())) != key(Before())  # a section's default is its own
    assert Later().settings(seed=1).shown == {
        "rows": 10,
        "inner": {"depth": 3},
        "fresh": False,
        "more": {"depth": 5},
        "seed": 1,
    }


def test_the_kept_file_is_of_this_repository(then: Made) -> None:
    assert then["cut corpus"]["shown"]["source"]["id_column"] == "id"
    assert "/tmp" not in KEPT.read_text()  # no path of a machine
