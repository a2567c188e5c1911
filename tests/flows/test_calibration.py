"""What is said beforehand against what it was worth: cases on toys, and how they are counted."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from albat_core.benchmark.arms import with_settings
from albat_core.benchmark.calibration import Case, Said, calibrate, table
from albat_core.benchmark.config import CalibrationConfig
from albat_core.benchmark.table import data_multiplier
from albat_core.errors import ConfigError
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT
from albat_core.report.content import Interval
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_calibration
from tests.toys import write_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CalibrationConfig:
    """One run on toys at two sizes, of which the larger one has a curve of its own."""
    path = write_run(tmp_path_factory.mktemp("calibration"))
    run = yaml.safe_load(path.read_text())
    run["mixture"]["alpha"] = "auto"
    run["split"] |= {"use": 0.6}
    path.write_text(yaml.safe_dump(run, sort_keys=False))
    settings = {"seeds": [0], "sizes": [0.5, 1.0], "parallel": 1}
    return load_calibration([str(path)], settings)


def trained(store: ArtifactStore, run: RunConfig, use: float, alpha: float) -> float:
    """The seconds of both of a run's arms."""
    chain = Chain(with_settings(run, split={"use": use}, mixture={"alpha": alpha}))
    adapters = (chain.arms.adapter(arm) for arm in (ADAPTATION_ONLY, ALBAT))
    return sum(store.manifest(ref).seconds for ref in adapters if ref is not None)


@pytest.mark.slow
def test_a_case_holds_what_was_said_against_what_was_measured(config: CalibrationConfig) -> None:
    (situation,) = config.situations
    cases = calibrate(situation, config.sizes, 0)
    assert [case.task for case in cases] == [situation.name] * 2
    assert cases[0].rows < cases[1].rows
    run = situation.run.model_copy(update={"seed": 0})
    store = ArtifactStore(run.runtime.root)

    def loss(use: float, arm: str, **sections: dict) -> float:
        chain = Chain(with_settings(run, split={"use": use}, **sections))
        return float(chain.facts(chain.arms.evaluation(arm))["loss"])

    shares = np.array([0.3, 0.6, 1.0])
    curve = np.array([loss(use, ADAPTATION_ONLY) for use in shares])
    for place, case in enumerate(cases):
        mixed = loss(shares[place], ALBAT, mixture={"alpha": case.alpha})
        expected = data_multiplier(shares[place:], curve[place:], mixed)
        assert case.measured.value == pytest.approx(expected)
        assert case.most == pytest.approx(1 / shares[place])
        assert case.gain.value == pytest.approx(curve[place] - mixed, abs=1e-9)
        assert case.gain.low <= case.gain.value <= case.gain.high
        assert case.alpha == (case.computed.alpha or 0.25)
        assert case.beforehand.seconds > 0
        assert case.seconds > case.computed.seconds > 0
        assert case.seconds > trained(store, run, shares[place], case.alpha)
    chain = Chain(with_settings(run, split={"use": 0.3}))
    facts = store.manifest(chain.estimate).facts
    assert cases[0].computed.multiplier == facts["multiplier"]
    again = calibrate(situation, config.sizes, 0)
    assert [c.model_dump() for c in again] == [c.model_dump() for c in cases]


def said(multiplier: float, low: float, high: float, alpha: float = 0.3) -> Said:
    return Said(
        alpha=alpha,
        alpha_interval=(0.1, 0.5),
        multiplier=multiplier,
        multiplier_interval=(low, high),
        ended_early=False,
        ratio=0.5,
        seconds=10,
    )


def case(beforehand: Said, computed: Said, measured: float, gain: Interval) -> Case:
    return Case(
        task="plants",
        seed=0,
        rows=1200,
        beforehand=beforehand,
        computed=computed,
        alpha=computed.alpha or 0.25,
        measured=Interval(value=measured, low=measured / 2, high=measured * 2),
        most=10,
        gain=gain,
        seconds=40,
    )


def test_what_held_is_counted() -> None:
    gained, even, lost = (
        Interval(value=value, low=value - 0.02, high=value + 0.02) for value in (0.1, 0.01, -0.1)
    )
    nothing = said(1.0, 1.0, 1.0, alpha=0.0)
    lines = table(
        [
            case(said(2.0, 1.5, 3.0), said(1.6, 1.2, 2.5), 1.9, gained),
            case(said(2.0, 1.5, 3.0), said(1.2, 0.8, 1.4), 1.5, even),
            case(said(1.3, 0.7, 2.0), nothing, 0.6, lost),
        ]
    ).splitlines()
    assert lines[2] == (
        "| plants | 0 | 1,200 | likely: 2.0 (1.5 to 3.0) | likely: 1.6 (1.2 to 2.5) "
        "| 1.9 (0.9 to 3.8) | +0.100 (+0.080 to +0.120) | 10 of 40 |"
    )
    assert "| unlikely | 0.6 (0.3 to 1.2), at alpha 0.25 |" in lines[4]
    told = "\n".join(lines[6:])
    assert "the interval beforehand holds what the run computed: 1 of 2 (50%)" in told
    assert "the run's interval holds what was measured: 1 of 2 (50%)" in told
    assert "likely, beforehand: 2 of 3, of which 2 gained, 1 beyond noise; 0 lost beyond it" in told
    assert "unlikely, by the run: 1 of 3, of which 0 gained, 0 beyond noise; 1 lost" in told
    assert "over that of the run: 0.25" in told


def test_sizes_leave_documents_to_compare_with(tmp_path: Path) -> None:
    """Where all are used, the curve would be one point, and any loss worth once the data."""
    path = str(write_run(tmp_path))
    with pytest.raises(ConfigError, match=r"got 2 where toy has split.use 1, 2 in all"):
        load_calibration([path], {})
    with pytest.raises(ConfigError, match=r"got 1 where toy"):
        load_calibration([path], {"sizes": [0.5, 1.0]})


def test_tasks_have_names_of_their_own(tmp_path: Path) -> None:
    path, half = str(write_run(tmp_path)), {"sizes": [0.5]}
    with pytest.raises(ConfigError, match="several times"):
        load_calibration([path, path], half)
    with pytest.raises(ConfigError, match=r"names of tasks \(toy\), got other"):
        load_calibration([path], half, None, ["other"])
    found = load_calibration([path], half, None, ["toy"])
    assert [each.name for each in found.situations] == ["toy"]
    with pytest.raises(ConfigError, match="sizes"):
        load_calibration([path], {"sizes": [0]})
