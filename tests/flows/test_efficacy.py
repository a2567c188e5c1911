"""The efficacy benchmark on toys: every arm, the table, and what is found again."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from albat_core.benchmark.arms import (
    LABELS,
    ArmResult,
    compute_of,
    longer,
    lowest,
    measure_situation,
    with_settings,
)
from albat_core.benchmark.chart import CHART
from albat_core.benchmark.config import EfficacyConfig
from albat_core.benchmark.table import (
    RESULTS,
    TABLE,
    Measured,
    Row,
    data_multiplier,
    table,
    tabulate,
)
from albat_core.errors import ConfigError, InputError
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, UNTOUCHED
from albat_core.records.scores import PART_STAGE
from albat_core.records.splits import ROLES, TEST, TRAIN, UNUSED, read_role
from albat_core.report.content import Interval
from albat_core.runs.chain import Chain
from albat_core.runs.steps import Pending
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.training.config import FinetuneConfig
from bench.development import losses
from flows.checks import check_file
from flows.config import load_efficacy
from flows.efficacy import efficacy
from flows.running.runners import Execute
from tests.toys import write_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EfficacyConfig:
    """Two tasks on toys, one seed, a short curve and grid."""
    folder = tmp_path_factory.mktemp("efficacy")
    run = yaml.safe_load(write_run(folder).read_text())
    run["mixture"]["alpha"] = "auto"
    run["split"] |= {"use": 0.5}
    for training in ("finetune", "surrogate"):
        run[training] = run[training] | {"penalty": 0.2}
    del run["scoring"]  # the default selects, and others are compared with it
    adaptation = run.pop("adaptation")
    path = folder / "benchmark.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "seeds": [0, 1],
                "alphas": [0.5],
                "shares": [0.7, 1.0],
                "learning_rates": [0.0002, 0.002],
                "run": run,
                "situations": {
                    "plants": {"adaptation": adaptation},
                    "gentle": {"adaptation": adaptation, "finetune": {"learning_rate": 0.001}},
                },
            },
            sort_keys=False,
        )
    )
    return load_efficacy(str(path))


def test_settings_of_a_task_stand_beside_those_of_all(config: EfficacyConfig) -> None:
    plants, gentle = (each.run for each in config.situations)
    assert (plants.name, gentle.name) == ("plants", "gentle")
    assert plants.finetune.learning_rate == 0.002
    assert gentle.finetune.learning_rate == 0.001
    assert gentle.finetune.steps == plants.finetune.steps == 12
    assert Path(plants.backbone.path).is_absolute()


def test_mistakes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("seeds: []\nsituations: {a: {backbone: {path: x}, corpus: {path: y}}}\n")
    with pytest.raises(ConfigError, match=r"(?s)adaptation.*seeds|seeds.*adaptation"):
        load_efficacy(str(path))


def test_of_two_tasks_of_one_name_none_is_lost_silently(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text(
        "run: {adaptation: {path: a}, backbone: {path: x}, corpus: {path: y}, seed: 010}\n"
        "situations:\n  a: {split: {use: 0.5}}\n  a: {}\nparallel: 0\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_efficacy(str(path))
    head, number, name, bound = caught.value.message.splitlines()
    assert head == "3 mistakes:"
    assert number.startswith("  line 1: 'run.seed': YAML reads 010 to another base")
    assert name == "  line 4: 'situations.a' is there already, in line 3"
    assert bound.startswith("  parallel: ")


def test_files_of_runs_and_of_benchmarks_are_told_apart(tmp_path: Path) -> None:
    run = {"backbone": {"path": "b"}, "corpus": {"path": "c"}, "adaptation": {"path": "a"}}
    (path := tmp_path / "file.yaml").write_text(yaml.safe_dump(run))
    with pytest.raises(ConfigError, match=r"expected a benchmark.*\n.*`albat run`"):
        load_efficacy(str(path))
    path.write_text(yaml.safe_dump({"run": run, "situations": {"a": {}}}))
    (mistake,) = check_file(str(path), {"root": str(tmp_path / "root")})
    assert "got a benchmark" in mistake.message
    assert "`albat bench efficacy`" in mistake.remedy


def test_keys_of_before_are_told_their_new_names(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(
        "run: {adaptation: {path: a}, backbone: {path: x}, corpus: {path: y}}\n"
        "situations: {a: {mixture: {rows: 20}}}\n"
    )
    with pytest.raises(ConfigError, match=r"'mixture\.rows' is now 'selection\.rows'"):
        load_efficacy(str(path))


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("valley", range(5))
def test_a_rate_is_tried_for_as_long_as_the_loss_falls(start: int, valley: int) -> None:
    rates, tried = (1.0, 2.0, 4.0, 8.0, 16.0), set()

    def loss(rate: float) -> float:
        tried.add(rate)
        return abs(np.log2(rate) - valley)

    assert lowest(rates, start, loss) == rates[valley]
    assert (
        len(tried) <= abs(start - valley) + 3
    )  # its neighbours too, one of them on the other side


def test_of_equal_losses_the_lower_rate_is_taken() -> None:
    assert lowest((1.0, 2.0, 4.0), 1, lambda rate: 0.0) == 1.0
    assert lowest((1.0, 2.0, 4.0), 2, {1.0: 1.0, 2.0: 0.0, 4.0: 0.0}.__getitem__) == 2.0


@pytest.fixture(scope="module")
def results(config: EfficacyConfig) -> list:
    first = measure_situation(config.situations[0], config, config.seeds[0])
    return first + measure_situation(config.situations[0], config, config.seeds[1], first)


def test_compute_counts_each_thing_once(store: ArtifactStore) -> None:
    def made(stage: str, passes: int, number: int = 0) -> ArtifactRef:
        built = Built(rows=1, facts={"passes": passes})
        return store.produce(stage, 1, {"number": number}, {}, lambda _folder: built)

    parts = [made(PART_STAGE, 30, number) for number in (1, 2)]
    surrogate, scores = made("adapter", 100), made("scores", 60)
    gradients, estimate = made("gradients", 7), made("estimate", 7)
    stages = [[surrogate], parts, [scores], [gradients], [estimate], [surrogate]]
    chain: Any = SimpleNamespace(stages=[SimpleNamespace(refs=refs) for refs in stages])
    passes, seconds = compute_of(store, chain, chain)
    assert passes == 100 + 60 + 7
    every = {*parts, surrogate, scores, gradients, estimate}
    assert seconds == pytest.approx(sum(store.manifest(ref).seconds for ref in every))


def test_the_curve_begins_with_what_the_arms_have(config: EfficacyConfig) -> None:
    settings = config.model_dump(mode="json")
    with pytest.raises(ValidationError, match=r"above split.use, got 0.5 where plants has 0.5"):
        EfficacyConfig.model_validate(settings | {"shares": [0.5, 1.0]})
    assert EfficacyConfig.model_validate(settings | {"shares": []}).shares == ()


@pytest.mark.slow
def test_every_arm_is_measured_with_its_compute(config: EfficacyConfig, results: list) -> None:
    first = {r.arm: r for r in results if r.seed == 0}
    assert set(first) == {*LABELS, "alpha 0.5", "share 0.7"} - {"nearest"}  # ALBAT's own
    assert first["untouched"].passes == 0
    assert first["albat"].passes > first["adaptation_only"].passes
    assert first["more_steps"].passes > first["adaptation_only"].passes
    assert first["albat"].alpha == first["gradient"].alpha == first["random"].alpha
    assert first["alpha 0.5"].alpha == 0.5
    evaluations = {r.evaluation.key for r in results}
    assert len(evaluations) > len(results) / 2  # arms and seeds are not one and the same


@pytest.mark.slow
def test_validation_documents_choose_each_learning_rate(
    config: EfficacyConfig, results: list
) -> None:
    first = {r.arm: r for r in results if r.seed == 0}
    assert first["untouched"].learning_rate == 0
    run = config.situations[0].run
    store = ArtifactStore(run.runtime.root)
    looking = run.model_copy(update={"refit": False})
    for arm, settings in {"adaptation_only": {}, "all_data": {"split": {"use": 1.0}}}.items():
        losses = {}
        for rate in config.learning_rates:
            for penalty in (0.0, config.penalty):
                training = {"learning_rate": rate, "penalty": penalty}
                chain = Chain(with_settings(looking, finetune=training, **settings))
                adapter = chain.arms.adapter("adaptation_only")
                losses[rate, penalty] = store.manifest(adapter).facts["validation_loss"]
        assert len(set(losses.values())) == len(losses)
        best = min(losses, key=losses.__getitem__)
        assert (first[arm].learning_rate, first[arm].penalty) == best
    assert first["more_steps"].training == first["adaptation_only"].training
    assert first["alpha 0.5"].training == first["albat"].training
    second = {r.arm: r for r in results if r.seed == 1}
    assert first.keys() == second.keys()
    for arm, result in second.items():
        assert (result.training, result.surrogate) == (first[arm].training, first[arm].surrogate)


@pytest.mark.slow
def test_all_data_in_a_run_is_the_benchmarks(config: EfficacyConfig, results: list) -> None:
    measured = next(r for r in results if r.seed == 0 and r.arm == "all_data")
    run = config.situations[0].run.model_copy(update={"baselines": ("all_data",)})
    chain = Chain(with_settings(run, finetune=measured.training))
    assert chain.arms.names == ("untouched", "all_data", "albat")
    assert chain.arms.evaluation("all_data").key == measured.evaluation.key


@pytest.mark.slow
def test_what_was_measured_is_found_again(config: EfficacyConfig, results: list) -> None:
    again = measure_situation(config.situations[0], config, 0)
    assert all(r.evaluation.reused for r in again)
    assert [r.evaluation.key for r in again] == [r.evaluation.key for r in results if r.seed == 0]


@pytest.mark.slow
def test_the_table_says_what_the_losses_say(config: EfficacyConfig, results: list) -> None:
    runtime = config.situations[0].run.runtime
    store = ArtifactStore(runtime.root)
    ref = tabulate(results, 0, runtime)
    rows = {row["arm"]: row for row in yaml.safe_load((store.folder(ref) / RESULTS).read_text())}
    losses = {
        arm: np.mean([store.manifest(r.evaluation).facts["loss"] for r in results if r.arm == arm])
        for arm in rows
    }
    for arm, row in rows.items():
        assert row["loss"]["value"] == pytest.approx(losses[arm])
        gain = losses["adaptation_only"] - losses[arm]
        assert row["gain"]["value"] == pytest.approx(gain, abs=1e-9)
        assert row["gain"]["low"] <= row["gain"]["value"] + 1e-9
    assert rows["adaptation_only"]["multiplier"]["value"] == 1
    assert rows["albat"]["behind"] == {"value": 0, "low": 0, "high": 0}
    ahead = rows["random"]["loss"]["value"] - rows["albat"]["loss"]["value"]
    assert rows["random"]["behind"]["value"] == pytest.approx(ahead)
    assert rows["adaptation_only"]["passes"] == 1
    text = (store.folder(ref) / TABLE).read_text()
    assert text.count("\n|") == len(rows) + 2
    assert "| gradient similarity (LESS) |" in text
    assert (store.folder(ref) / CHART).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (3.0, 1.0),
        (2.5, 2.0),
        (2.25, 2 * 2**0.5),  # halfway in the logarithm of the share
        (2.0, 4.0),
        (1.0, 10.0),  # better than all of the data: at least so many times
        (3.25, 2**-0.5),  # the first piece goes on
        (9.0, 0.1),  # no further down than the curve goes up
    ],
)
def test_multiplier_is_read_off_the_curve(loss: float, expected: float) -> None:
    shares = np.array([0.1, 0.2, 0.4, 1.0])
    losses = np.array([3.0, 2.5, 2.0, 1.5])
    assert data_multiplier(shares, losses, loss) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("settings", "length"), [({"steps": 100}, {"steps": 250}), ({"epochs": 3}, {"epochs": 7.5})]
)
def test_a_training_is_made_longer_in_what_its_length_is_in(
    settings: dict[str, float], length: dict[str, float]
) -> None:
    assert longer(FinetuneConfig.model_validate(settings), 2.5) == length


def test_seeds_with_the_same_held_out_documents_have_them_drawn_once() -> None:
    """The interval of a mean is then that of the documents, however many seeds there are."""
    documents = numpy_generator(0, "documents").normal(size=30)

    def width(*, apart: bool) -> float:
        given = [
            ArmResult.model_construct(arm=ADAPTATION_ONLY, seed=seed, share=1.0)
            for seed in range(9)
        ]
        units = {seed: np.full(30, 1.0 + apart * seed) for seed in range(9)}
        measured = Measured(given, lambda r: (documents * units[r.seed], units[r.seed]))
        loss = measured.interval(measured.drawn(numpy_generator(0, "draws"))[ADAPTATION_ONLY])
        return loss.high - loss.low

    assert width(apart=False) == pytest.approx(2 * 1.96 * np.std(documents) / 30**0.5, rel=0.1)
    assert width(apart=True) < 0.6 * width(apart=False)


def test_a_curve_that_rises_is_made_falling() -> None:
    shares = np.array([0.1, 0.2, 0.4, 1.0])
    assert data_multiplier(shares, np.array([3.0, 3.1, 2.0, 2.0]), 2.0) == pytest.approx(4.0)
    assert data_multiplier(shares, np.array([3.0, 3.1, 3.2, 3.0]), 3.5) == 0.1
    nearly_flat = np.array([3.0, 2.999, 2.999, 2.999])
    assert data_multiplier(shares, nearly_flat, 3.5) == pytest.approx(0.1)
    flat = np.array([3.0, 2.5, 2.0, 2.0])
    assert data_multiplier(shares, flat, 1.9) == 10.0  # beyond the curve, not where it grew flat


@pytest.mark.parametrize(
    ("values", "most", "told"),
    [
        ((10.0, 10.0, 10.0), 10.0, "> 10"),
        ((10.0, 3.5, 10.0), 10.0, "> 10 (3.5 to > 10)"),
        ((4.0, 2.0, 10.0), 10.0, "4.0 (2.0 to > 10)"),
        ((0.4, 0.1, 1.2), 10.0, "0.4 (< 0.1 to 1.2)"),
        ((0.1, 0.1, 0.1), 10.0, "< 0.1"),
        ((0.08, 0.08, 0.5), 12.5, "< 0.08 (< 0.08 to 0.5)"),
        ((4.0, 2.0, 9.0), 12.5, "4.0 (2.0 to 9.0)"),
        ((12.5, 9.0, 12.5), 12.5, "> 12.5 (9.0 to > 12.5)"),
        ((10.0, 10.0, 10.0), None, "10.0"),  # the curve's own last point
        ((1.0, 1.0, 1.0), 1.0, "> 1"),  # nothing to measure by
    ],
)
def test_a_multiplier_beyond_the_curve_is_written_as_more(
    values: tuple[float, float, float], most: float | None, told: str
) -> None:
    value, low, high = values
    nil = Interval(value=0, low=0, high=0)
    multiplier = Interval(value=value, low=low, high=high)
    row = Row(
        situation="plants",
        arm="albat",
        loss=nil,
        gain=nil,
        behind=nil,
        multiplier=multiplier,
        most=most,
        share=0.1,
        alphas=(0.5,),
        learning_rates=(0.001,),
        penalties=(0.0,),
        best_steps=(1,),
        passes=1,
        seconds=1,
    )
    assert table([row]).splitlines()[-1].split(" | ")[4] == told


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("run: hello\nsituations: {a: {}}\n", "run: expected keys with values, got str"),
        ("situations: [a, b]\n", "situations: expected keys with values, got list"),
        ("situations: {a: [1]}\n", "situations.a: expected keys with values, got list"),
        ("run: {runtime: [1]}\nsituations: {a: }\n", "a.runtime: expected keys with values"),
    ],
)
def test_sections_of_another_shape_are_told(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_efficacy(str(path), {"device": "cpu"})
    assert said in str(caught.value)
    assert caught.value.remedy


def test_an_empty_runtime_is_its_defaults(tmp_path: Path) -> None:
    run = (
        "{backbone: {path: b}, corpus: c, adaptation: a, split: {use: 0.1}, runtime: {workers: 3}}"
    )
    path = tmp_path / "b.yaml"
    path.write_text(f"run: {run}\nsituations: {{a: {{runtime: }}}}\n")
    (situation,) = load_efficacy(str(path), {"device": "cpu"}).situations
    assert (situation.run.runtime.workers, situation.run.runtime.device) == (3, "cpu")
    path.write_text(f"run: {run.replace('{workers: 3}', '')}\nsituations: {{a: }}\n")
    assert len(load_efficacy(str(path)).situations) == 1


@pytest.mark.slow
def test_development_documents_are_neither_trained_on_nor_held_out(
    config: EfficacyConfig, results: list
) -> None:
    situation = config.situations[0]
    store = ArtifactStore(situation.run.runtime.root)
    rows = Chain(situation.run).inputs.adaptation
    of_role = {role: {e.document for e in read_role(store, rows, role)} for role in ROLES}
    found = {arm.arm: losses(arm, situation) for arm in results if arm.arm in (UNTOUCHED, ALBAT)}
    for _, units in found.values():
        assert len(units) == len(of_role[UNUSED]) > 0
    assert not of_role[UNUSED] & (of_role[TEST] | of_role[TRAIN])
    (before, _), (after, _) = found[UNTOUCHED], found[ALBAT]
    assert np.abs(before - after).min() > 0


def test_where_a_task_fails_the_others_go_on(
    config: EfficacyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, int]] = []

    @contextmanager
    def one_by_one(_count: int) -> Iterator[Execute]:
        yield call

    def call(stage: Callable[..., Any], **settings: Any) -> Pending[Any]:
        if stage is not measure_situation:
            raise AssertionError(f"{stage} of a benchmark that is not whole")
        measured.append((settings["situation"].name, settings["seed"]))
        return Ended(measured[-1])

    class Ended:
        def __init__(self, case: tuple[str, int]) -> None:
            self.case = case

        def result(self) -> list[tuple[str, int]]:
            if self.case == ("plants", 0):
                raise InputError("expected leaves, got none", where=str(self.case))
            return [self.case]

    monkeypatch.setattr("flows.efficacy.tasks_in_processes", one_by_one)
    with pytest.raises(InputError, match="expected leaves"):
        unwrap(efficacy.fn)(config)
    assert measured == [("plants", 0), ("gentle", 0), ("gentle", 1)]
