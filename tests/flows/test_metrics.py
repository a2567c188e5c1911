"""A run with metrics: what is written once, what it is worth, and where that is told."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from albat_core.backbones.language.writing import write_answers
from albat_core.benchmark.arms import ArmResult
from albat_core.benchmark.table import rows_of, table, tabulate
from albat_core.errors import ConfigError
from albat_core.records.answers import read_answers
from albat_core.records.grades import GRADES, document_grades
from albat_core.records.tables import read_table
from albat_core.report.content import ReportContent
from albat_core.report.gathering import compare_arms
from albat_core.report.markdown import results
from albat_core.report.page import render
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Registry
from albat_core.seeding import numpy_generator
from albat_core.stages.report import RESULTS
from albat_core.store.artifacts import ArtifactStore
from flows.checks import check_file
from flows.config import load_config
from flows.showing import show_results
from tests.flows.conftest import Albat
from tests.pictures import write_image_run
from tests.toys import rewrite, topic_rows, write_jsonl, write_run

ARMS = ("untouched", "adaptation_only", "albat")
METRICS = ["rouge_l", "exact_match", "toy_metrics:long_answers"]
TRAINING = {"steps": 16, "batch_size": 4, "evaluate_every": 16, "learning_rate": 0.03}
OWN = """
def long_answers(answers, references, prompts):
    return [len(a) / 10 + len(p) / 100 for a, r, p in zip(answers, references, prompts)]
"""


def write_questions(folder: Path, **changes: Any) -> Path:
    """Write a run on toys whose adaptation rows are prompts with answers, some documents long."""
    metrics = {"metrics": METRICS, "answers": 10, "max_new_tokens": 8}
    path = write_run(folder, baselines=["adaptation_only"], evaluation=metrics)
    rows = []
    for each in topic_rows("plants", 60, seed=1, per_document=1):
        words = each["text"].split()
        place = int(each["id"].rpartition("-")[2])
        rows.append(
            {"id": each["id"], "doc": f"d{min(place, 70 - place) // 3}"}
            | {"question": " ".join(words[:3]), "answer": " ".join(words[3:])}
        )
    write_jsonl(folder / "adaptation.jsonl", rows)
    columns = {"id_column": "id", "document_column": "doc"}
    templates = {"prompt_template": "Q: {question}\nA: ", "answer_template": "{answer}"}
    rewrite(path, {"adaptation": {"path": "adaptation.jsonl", **columns, **templates}})
    return rewrite(path, changes)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("questions")
    (folder / "toy_metrics.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield write_questions(folder, split={"folds": 3, "test": 0.4}, finetune=TRAINING)


def test_every_arm_answers_the_same_prompts(asked: Chain, kept: ArtifactStore) -> None:
    tables = [read_answers(kept, arm.answers) for arm in asked.arms.runs if arm.answers]
    assert [arm.name for arm in asked.arms.runs] == list(ARMS)
    assert len(tables) == 3
    for name in ("example_id", "document", "prompt", "reference"):
        assert tables[0][name].equals(tables[1][name]) and tables[0][name].equals(tables[2][name])
    assert tables[0].num_rows == 10
    assert len({tuple(t["answer"].to_pylist()) for t in tables}) == 3


def test_a_metric_s_scores_are_kept_by_row_and_summed_by_document(
    asked: Chain, kept: ArtifactStore
) -> None:
    own = asked.arms.grades("albat")[2]
    rows = read_table(kept.folder(own) / GRADES).to_pylist()
    answers = read_answers(kept, asked.arms.answers("albat")).to_pylist()  # type: ignore[arg-type]
    expected = [len(a["answer"]) / 10 + len(a["prompt"]) / 100 for a in answers]
    assert [row["score"] for row in rows] == pytest.approx(expected)
    totals, units = document_grades(kept, own, METRICS[2])
    names = sorted({row["document"] for row in rows})
    assert 1 < len(names) < len(rows)
    by_name = {n: [r["score"] for r in rows if r["document"] == n] for n in names}
    assert totals.tolist() == pytest.approx([sum(by_name[n]) for n in names])
    assert units.tolist() == [len(by_name[n]) for n in names]
    assert kept.manifest(own).facts["means"] == [pytest.approx(totals.sum() / units.sum())]


def test_intervals_are_over_documents_and_gains_paired_and_positive_where_better(
    asked: Chain, kept: ArtifactStore
) -> None:
    arms = {arm.name: arm for arm in compare_arms(kept, asked.arms.runs, seed=4)}
    assert [m.name for m in arms["albat"].metrics] == METRICS
    assert [m.title for m in arms["albat"].metrics] == ["ROUGE-L", "exact match", "long_answers"]
    mine, base = (
        document_grades(kept, asked.arms.grades(a)[2], METRICS[2])
        for a in ("albat", "adaptation_only")
    )
    units = mine[1]
    drawn = numpy_generator(4, "bootstrap").integers(0, len(units), size=(2000, len(units)))
    metric = arms["albat"].metrics[2]
    for totals, found in ((mine[0], metric.value), (mine[0] - base[0], metric.gain)):
        samples = totals[drawn].sum(axis=1) / units[drawn].sum(axis=1)
        low, high = np.quantile(samples, [0.025, 0.975])
        assert found is not None
        assert [found.value, found.low, found.high] == pytest.approx(
            [totals.sum() / units.sum(), low, high]
        )
    value = arms["adaptation_only"].metrics[2].value.value
    assert metric.gain is not None
    assert metric.gain.value == pytest.approx(metric.value.value - value) != 0
    assert arms["adaptation_only"].metrics[2].gain is None


def test_another_metric_and_other_losses_write_no_answer_again(
    config: RunConfig, asked: Chain, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {arm.name: arm for arm in asked.arms.runs}

    def again(**changes: Any) -> Chain:
        settings = config.evaluation.model_copy(update=changes)
        return Chain(config.model_copy(update={"evaluation": settings}))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("an answer was written again")

    monkeypatch.setattr("albat_core.backbones.language.model.write_answers", refuse)
    fewer = again(metrics=("exact_match",))
    assert fewer.arms.answers("albat") == before["albat"].answers
    assert fewer.arms.grades("albat") == before["albat"].grades[1:2]
    assert fewer.arms.grades("albat")[0].reused
    source = path.with_name("toy_metrics.py")
    source.write_text(OWN + "# changed\n")
    changed = again().arms.grades("albat")
    source.write_text(OWN)
    assert changed[:2] == before["albat"].grades[:2] and changed[2] != before["albat"].grades[2]
    more = again(max_new_tokens=9)
    assert more.arms.evaluation("albat") == before["albat"].evaluation
    with pytest.raises(AssertionError, match="written again"):
        more.arms.answers("albat")
    monkeypatch.setattr("albat_core.backbones.language.model.write_answers", write_answers)
    assert again(noise_levels=16).arms.answers("albat") == before["albat"].answers
    assert again(metrics=()).arms.runs[2].answers is None


def test_losses_have_the_keys_that_they_have_without_metrics(
    config: RunConfig, asked: Chain
) -> None:
    silent = config.model_copy(update={"evaluation": type(config.evaluation)()})
    assert Chain(silent).arms.evaluation("untouched") == asked.arms.evaluation("untouched")


def test_the_report_tells_of_metrics_and_shows_answers(
    asked: Chain, kept: ArtifactStore, content: ReportContent
) -> None:
    answers = content.answers
    assert answers is not None
    assert (answers.rows, answers.bare, len(answers.labels)) == (10, 0, 3)
    assert answers.documents == len({r.prompt for r in answers.shown}) or answers.documents > 6
    first = read_answers(kept, asked.arms.answers("albat")).to_pylist()[0]  # type: ignore[arg-type]
    shown = answers.shown[0]
    assert (shown.prompt, shown.reference) == (first["prompt"], first["reference"])
    assert shown.answers[2] == first["answer"]
    html = render(content)
    assert 'id="answers"' in html and 'href="#answers"' in html
    assert "ROUGE-L, higher is better" in html and "long_answers, higher is better" in html
    assert first["reference"] in html
    saved = json.loads((kept.folder(asked.report) / RESULTS).read_text())
    albat = next(arm for arm in saved["arms"] if arm["name"] == "albat")
    assert set(albat["metrics"][0]) == {"name", "title", "value", "gain", "task", "documents"}
    assert set(albat["metrics"][0]["gain"]) == {"value", "low", "high"}


def test_terminal_and_pages_say_which_way_is_better(
    content: ReportContent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.console.width", 80)
    show_results(content)
    out = capsys.readouterr().out
    assert "…" not in out
    headings = [line for line in out.splitlines() if line.startswith("higher is better")]
    assert [h.split()[3] for h in headings] == ["ROUGE-L", "exact", "long_answers"]
    metric = content.arms[2].metrics[2]
    assert metric.gain is not None
    assert f"{metric.value.value:.3f}" in out.split("long_answers")[1]
    markdown = results(content.arms, content.unit)
    assert "| held-out answers | ROUGE-L, higher is better | 95% interval | gain" in markdown
    told = markdown.split("long_answers, higher is better")[1]
    sign = "−" if metric.gain.value < 0 else "+"
    assert f"| {sign}{abs(metric.gain.value):.3f} |" in told


def test_the_registry_has_metrics_where_losses_stand(
    asked: Chain, kept: ArtifactStore, content: ReportContent, albat: Albat, config: RunConfig
) -> None:
    made = asked.register(evaluated=True)
    assert made.metrics == content.arms[2].metrics
    again = asked.register(evaluated=False)
    assert again.metrics == made.metrics  # what was measured is not lost
    assert Registry(kept).entries("toy")[-1].metrics == made.metrics
    heading, line = albat("list", "--root", config.runtime.root).out.splitlines()
    assert "ROUGE-L" in heading and "long_answers" in heading
    assert f"{made.metrics[2].value.value:.3f}" in line
    compared = albat("diff", made.name, made.name, "--root", config.runtime.root).out
    assert f"{made.metrics[2].value.value:.4f}" in compared
    assert "ROUGE-L (higher is better)" in compared


def test_the_benchmark_has_a_column_for_each_metric(
    asked: Chain, kept: ArtifactStore, config: RunConfig
) -> None:
    def result(arm: str, role: str, seed: int, share: float = 0.5) -> ArmResult:
        return ArmResult(
            situation="plants",
            seed=seed,
            arm=arm,
            evaluation=asked.arms.evaluation(role),
            grades=asked.arms.grades(role),
            alpha=0.5,
            share=share,
            best_step=1,
            learning_rate=0.001,
            penalty=0.0,
            surrogate=0.001,
            passes=1,
            seconds=1,
        )

    roles = {arm: arm for arm in ("adaptation_only", "untouched", "albat")}
    roles["random"] = "untouched"
    runs = [result(arm, role, seed) for arm, role in roles.items() for seed in (0, 1)]
    found = rows_of(kept, runs, seed=0)
    rows = {row.arm: row for row in found}
    for place, name in enumerate(METRICS):
        grades = {arm: asked.arms.grades(role)[place] for arm, role in roles.items()}
        means = {arm: kept.manifest(grades[arm]).facts["means"][0] for arm in rows}
        for arm, row in rows.items():
            metric = row.metrics[place]
            assert metric.name == name and metric.gain is not None
            assert metric.value.value == pytest.approx(means[arm])
            gain = means[arm] - means["adaptation_only"]
            assert metric.gain.value == pytest.approx(gain, abs=1e-12)
            assert metric.value.low <= metric.value.value + 1e-9
    heading, rule, *lines = table(found).splitlines()[2:]
    assert heading.endswith(
        "| ROUGE-L, higher is better; gain | exact match, higher is better; gain "
        "| long_answers, higher is better; gain |"
    )
    assert {line.count("|") for line in (heading, rule, *lines)} == {11}
    without = [run.model_copy(update={"grades": ()}) for run in runs]
    plain = rows_of(kept, without, seed=0)
    assert [row.loss for row in plain] == [row.loss for row in found]
    assert table(plain).splitlines()[2].endswith("| compute |")
    for each, there in ((without, False), (runs, True)):  # keys without metrics are as before
        ref = tabulate(each, 0, config.runtime)
        assert ("grades" in kept.manifest(ref).inputs["results"][0]) is there


# What is found before anything is computed


def mistakes(path: Path) -> list[str]:
    return [str(error) for error in check_file(str(path))]


def test_a_sound_run_with_metrics_is_sound(path: Path) -> None:
    assert mistakes(path) == []


def test_metrics_of_pictures_are_refused_by_name(tmp_path: Path) -> None:
    path = write_image_run(tmp_path, evaluation={"noise_levels": 8, "metrics": ["rouge_l"]})
    with pytest.raises(ConfigError, match=r"metrics \(rouge_l\) compare texts"):
        load_config(str(path))
    (found,) = mistakes(path)
    assert "'evaluation': metrics (rouge_l) compare texts" in found and "line " in found


def test_rows_of_plain_text_have_nothing_to_measure(tmp_path: Path) -> None:
    path = write_run(tmp_path, evaluation={"metrics": ["exact_match"]})
    (found,) = mistakes(path)
    assert "expected held-out rows with prompt and answer for evaluation.metrics, got 40" in found


def test_held_out_rows_of_their_own_are_those_that_are_asked(tmp_path: Path) -> None:
    columns = {"id_column": "id", "document_column": "doc"}
    write_jsonl(tmp_path / "heldout.jsonl", topic_rows("plants", 12, seed=3))
    path = write_questions(tmp_path, heldout={"path": "heldout.jsonl", **columns})
    rewrite(path, {"evaluation": {"metrics": ["exact_match"]}})
    (found,) = mistakes(path)
    assert "got 12 of plain text" in found


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        ("no_such_module:f", "evaluation.metrics: no_such_module:f: expected a module"),
        ("toy_broken:none", "expected a function 'none' in toy_broken"),
        ("toy_broken:one", "expected 6 finite scores, one for each answer, got 1"),
        ("toy_broken:picky", "expected a list of 6 numbers"),
        ("rouge", "got 'rouge'"),
    ],
)
def test_a_metric_that_is_not_there_or_gives_no_scores_is_found_by_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, said: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "toy_broken.py").write_text(
        "def one(answers, references, prompts):\n    return [1.0]\n"
        "def picky(answers, references, prompts):\n    return [len(a) / len(a) for a in answers]\n"
    )
    path = write_questions(tmp_path, evaluation={"metrics": ["exact_match", metric]})
    (found,) = mistakes(path)
    assert said in found


def test_the_starter_names_the_key(albat: Albat, tmp_path: Path) -> None:
    target = tmp_path / "albat.yaml"
    assert albat("init", target).code == 0
    text = target.read_text()
    assert "#metrics: []" in text and "#answers: 200" in text
    values = yaml.safe_load(
        text.replace("#evaluation:", "evaluation:").replace("#metrics", "metrics")
    )
    assert values["evaluation"] == {"metrics": []}
