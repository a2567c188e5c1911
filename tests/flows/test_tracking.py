"""Trackers in a configuration: what `albat check` says of them."""

from pathlib import Path

import pytest

from flows.config import load_config
from tests.flows.conftest import Albat
from tests.toys import rewrite, write_run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tracking": ["mlfow"]},
            "expected one of mlflow, tensorboard, trackio, wandb",
        ),
        ({"tracking": ["tensorboard"], "output": "memory://runs"}, "expected a local output"),
    ],
)
def test_what_cannot_be_tracked_is_told_before_the_run(
    albat: Albat, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    checked = albat("check", rewrite(write_run(tmp_path), changes))
    assert checked.code == 1
    assert said in checked.err
    assert "error:" in checked.err


def test_a_run_is_tracked_below_its_output(tmp_path: Path) -> None:
    run = load_config(str(rewrite(write_run(tmp_path), {"tracking": ["tensorboard"]})))
    assert run.tracked.project == "toy"
    assert run.tracked.folder == str(tmp_path / "runs" / "toy")
    assert (
        run.settings(without={"tracking"}).named
        == load_config(str(rewrite(tmp_path / "run.yaml", {"tracking": []}))).settings().named
    )
