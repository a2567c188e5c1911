"""Tasks of lm-eval in a run: its own figures for every arm, and what is refused beforehand."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from albat_core.backbones import open_backbone
from albat_core.benchmark.arms import ArmResult
from albat_core.benchmark.table import rows_of, table
from albat_core.errors import ConfigError, Interrupted
from albat_core.measures.lm_eval import take_task, task_identity
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.records.grades import GRADES, document_grades, metrics_of
from albat_core.records.tables import read_table
from albat_core.report.content import ReportContent
from albat_core.report.markdown import results
from albat_core.report.page import render
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from flows.checks import check_file
from flows.config import load_config
from flows.showing import show_results
from tests.pictures import write_image_run
from tests.toys import rewrite, sentences, write_jsonl, write_run

HOW_TO = Path(__file__).parent.parent.parent / "docs" / "how-to" / "evaluate-with-lm-eval.md"
ARMS = ("untouched", "adaptation_only", "albat")
TRAINING = {"steps": 16, "batch_size": 4, "evaluate_every": 16, "learning_rate": 0.03}
WRITTEN = """
dataset_path: json
dataset_kwargs: {data_files: {train: ROWS, test: ROWS}}
training_split: train
test_split: test
output_type: generate_until
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: true, temperature: 1.0}
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
"""
OWN = """
def measured(doc, results):
    return {"letters": len(results[0]), "places": results[0].count("a") / 8}
"""


def write_task(folder: Path, rows: Path) -> Path:
    """Write the task that the how-to page shows."""
    found = re.search(r'```yaml title="mine.yaml"\n(.*?)```', HOW_TO.read_text(), re.DOTALL)
    assert found and "/path/to/rows.jsonl" in found[1]
    path = folder / "mine.yaml"
    path.write_text(found[1].replace("/path/to/rows.jsonl", str(rows)))
    return path


def write_tasks(folder: Path, **changes: Any) -> Path:
    """Write a run on toys, a task of choices, and one that names code and includes a file."""
    texts = [text.split() for text in sentences("plants", 40, seed=7)]
    rows = write_jsonl(
        folder / "rows.jsonl",
        [
            {"question": " ".join(w[:3]), "choices": [w[3], w[4], "mast"], "answer": n % 2}
            for n, w in enumerate(texts)
        ],
    )
    write_task(folder, rows)
    (folder / "common.yaml").write_text(WRITTEN.replace("ROWS", str(rows)))
    (folder / "functions.py").write_text(OWN)
    told = "{metric: %s, aggregation: mean, higher_is_better: true}"
    (folder / "letters.yaml").write_text(
        "task: letters_of_answers\ninclude: common.yaml\n"
        "process_results: !function functions.measured\n"
        f"metric_list: [{told % 'letters'}, {told % 'places'}]\n"
    )
    return write_run(folder, baselines=["adaptation_only"], finetune=TRAINING, **changes)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tasks = {"tasks": ["mine.yaml", "letters.yaml"], "trust_remote_code": True, "fewshot": 1}
    return write_tasks(tmp_path_factory.mktemp("tasks"), evaluation=tasks)


@pytest.mark.parametrize("arm", ["untouched", "albat"])
def test_figures_are_those_of_lm_eval_with_the_exported_adapter(
    asked: Chain, kept: ArtifactStore, config: RunConfig, arm: str
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    adapter = asked.arms.adapter(arm)
    model = HFLM(
        pretrained=config.backbone.path,
        peft=str(kept.folder(adapter)) if adapter else None,
        device="cpu",
        dtype="float32",
        batch_size=8,
    )
    grades = asked.arms.grades(arm)
    for ref, file, task in zip(
        grades, config.evaluation.tasks, ("mine", "letters_of_answers"), strict=True
    ):
        plain = lm_eval.simple_evaluate(
            model, tasks=[file], num_fewshot=1, task_manager=TaskManager(include_defaults=False)
        )
        found = read_table(kept.folder(ref) / GRADES).to_pylist()
        for _, name, _ in metrics_of(kept, [ref]):
            metric = name.rpartition(" ")[2]
            its = [row for row in found if row["metric"] == name]
            expected = {f"{task}/{s['doc_id']}": s[metric] for s in plain["samples"][task]}
            assert {row["document"]: row["score"] for row in its} == expected
            totals, units = document_grades(kept, ref, name)
            assert len(units) == 40 and set(units) == {1}
            told = plain["results"][task][f"{metric},none"]
            assert totals.sum() / units.sum() == pytest.approx(told, abs=1e-12)


def test_arms_differ_and_a_task_s_metrics_are_apart(asked: Chain, kept: ArtifactStore) -> None:
    names = [name for _, name, _ in metrics_of(kept, asked.arms.grades("albat"))]
    assert names == ["mine acc", "letters letters", "letters places"]
    written = [kept.manifest(asked.arms.grades(arm)[1]).facts["means"] for arm in ARMS]
    assert len({tuple(means) for means in written}) == 3
    assert all(letters != places for letters, places in written)


def test_the_same_twice_and_the_tokenizer_is_left_alone(
    config: RunConfig,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # no git repository
    file = config.evaluation.tasks[1]
    settings: dict[str, Any] = {"batch": 4, "trust_remote_code": True}
    with (
        open_backbone(config.backbone, config.runtime) as backbone,
        backbone.as_transformers() as (model, tokenizer),
    ):
        bare = deepcopy(tokenizer)
        bare.pad_token = None  # lm-eval takes another in its place
        state = torch.get_rng_state()
        capfd.readouterr()
        first, again = (
            take_task(file, model, bare, limit=12, fewshot=2, **settings) for _ in range(2)
        )
        said = capfd.readouterr()
        other, _ = take_task(file, model, bare, limit=5, fewshot=0, **settings)
        assert bare.pad_token is None
        assert torch.equal(torch.get_rng_state(), state)
    assert first[0] == again[0] == [f"letters_of_answers/{n}" for n in range(12)]
    assert other == first[0][:5]
    for name, scores in first[1].items():
        assert scores.tobytes() == again[1][name].tobytes()
    assert said.out == said.err == ""


def test_progress_counts_requests_and_a_stop_is_heard(config: RunConfig) -> None:
    told: list[tuple[str, int, str]] = []
    done: list[int] = []

    class Counts(Silent):
        @contextmanager
        def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
            told.append((label, total, unit))

            def advance(count: int) -> None:
                done.append(count)
                if len(done) == 20:
                    raise Interrupted("stopped")

            yield advance
            told.append(("over", 0, ""))

    with (
        open_backbone(config.backbone, config.runtime) as backbone,
        backbone.as_transformers() as (model, tokenizer),
        reporting_to(Counts()),
        pytest.raises(Interrupted),
    ):
        for limit in (5, 40):
            take_task(
                config.evaluation.tasks[0],
                model,
                tokenizer,
                limit=limit,
                fewshot=0,
                batch=4,
                trust_remote_code=False,
                label="ALBAT, mine",
            )
    assert told == [
        ("ALBAT, mine", 15, "requests"),
        ("over", 0, ""),
        ("ALBAT, mine", 120, "requests"),
    ]
    assert sum(done[:15]) == 15


def test_of_a_group_all_rows_count_alike(
    config: RunConfig, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    few = write_jsonl(tmp_path / "few.jsonl", [{"question": "a", "choices": ["b"], "answer": 0}])
    mine = path.with_name("mine.yaml").read_text()
    normed = "{metric: acc_norm, aggregation: mean, higher_is_better: true}"
    (tmp_path / "mine.yaml").write_text(mine.replace("metric_list: [", f"metric_list: [{normed}, "))
    rows = str(path.with_name("rows.jsonl"))
    (tmp_path / "other.yaml").write_text(mine.replace("mine", "other").replace(rows, str(few)))
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [mine, other]\naggregate_metric_list: [{metric: acc}]\n"
    )
    manager = TaskManager(include_path=tmp_path, include_defaults=False)
    monkeypatch.setattr("albat_core.measures.lm_eval._manager", lambda own: manager)
    with (
        open_backbone(config.backbone, config.runtime) as backbone,
        backbone.as_transformers() as (model, tokenizer),
    ):
        names, scores = take_task(
            "both", model, tokenizer, limit=None, fewshot=None, batch=8, trust_remote_code=False
        )
        plain = lm_eval.simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8),
            tasks=["both"],
            task_manager=manager,
        )
    assert names == [*(f"mine/{n}" for n in range(40)), "other/0"]
    assert list(scores) == ["both acc"]  # the metric that both have
    assert plain["n-samples"]["other"]["effective"] == 1
    assert scores["both acc"].mean() == pytest.approx(plain["groups"]["both"]["acc,none"])
    assert scores["both acc"].mean() != scores["both acc"][:40].mean()


def test_report_terminal_and_pages_tell_of_tasks(
    content: ReportContent, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.console.width", 80)
    albat = content.arms[2]
    assert [metric.task for metric in albat.metrics] == ["mine", "letters", "letters"]
    assert all(metric.gain is not None for metric in albat.metrics)
    assert content.answers is None
    html = render(content)
    assert 'id="tasks"' in html and 'href="#tasks"' in html and 'id="answers"' not in html
    assert html.count("mine acc, higher is better") == 1
    assert "<dt>mine, letters</dt>" in html
    of_answers = albat.metrics[0].model_copy(update={"task": None})
    told = albat.model_copy(update={"metrics": (of_answers, *albat.metrics[1:])})
    html = render(content.model_copy(update={"arms": (told,)}))
    assert "mine acc, higher is better" not in html and "letters places, higher" in html
    markdown = results(content.arms, content.unit)
    assert markdown.count("| task of lm-eval | ") == 3
    assert "| task of lm-eval | mine acc, higher is better |" in markdown
    show_results(content)
    out = capsys.readouterr().out
    assert f"{albat.metrics[0].value.value:.3f}" in out.split("mine acc")[1]


def test_the_benchmark_has_a_column_for_each_metric_of_a_task(
    asked: Chain, kept: ArtifactStore
) -> None:
    roles = {arm: arm for arm in ARMS} | {"random": "untouched"}
    runs = [
        ArmResult(
            situation="plants",
            seed=0,
            arm=arm,
            evaluation=asked.arms.evaluation(role),
            grades=asked.arms.grades(role),
            alpha=0.5,
            share=0.5,
            best_step=1,
            learning_rate=0.001,
            penalty=0.0,
            surrogate=0.001,
            passes=1,
            seconds=1,
        )
        for arm, role in roles.items()
    ]
    found = rows_of(kept, runs, seed=0)
    heading = table(found).splitlines()[2]
    assert heading.endswith(
        "| mine acc, higher is better; gain | letters letters, higher is better; gain "
        "| letters places, higher is better; gain |"
    )
    for row in found:
        means = [
            mean
            for ref in asked.arms.grades(roles[row.arm])
            for mean in kept.manifest(ref).facts["means"]
        ]
        assert [m.value.value for m in row.metrics] == pytest.approx(means)


def test_what_changes_a_task_changes_its_key_and_no_loss(
    config: RunConfig, asked: Chain, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a task was taken again")

    def again(**changes: Any) -> Chain:
        settings = config.evaluation.model_copy(update=changes)
        return Chain(config.model_copy(update={"evaluation": settings}))

    before = asked.arms.grades("albat")
    monkeypatch.setattr("albat_core.stages.examine.take_task", refuse)
    fewer = again(tasks=config.evaluation.tasks[:1])
    assert fewer.arms.grades("albat") == before[:1]
    assert again(tasks=(), fewshot=None).arms.evaluation("albat") == asked.arms.evaluation("albat")
    assert again(answers=3).arms.grades("albat") == before
    for changes in ({"task_limit": 39}, {"fewshot": 0}, {"task_batch": 2}):
        with pytest.raises(AssertionError, match="taken again"):
            again(**changes).arms.grades("albat")
    for name in ("rows.jsonl", "mine.yaml", "common.yaml", "functions.py"):
        file = path.with_name(name)
        text = file.read_text()
        file.write_text(text + "\n")
        with pytest.raises(AssertionError, match="taken again"):
            again().arms.grades("albat")
        file.write_text(text)
    assert again().arms.grades("albat") == before


def test_a_task_moved_with_its_content_is_the_same(tmp_path: Path) -> None:
    found = []
    for name in ("here", "there"):
        rows = write_jsonl(tmp_path / "rows.jsonl", [{"question": "a", "choices": ["b"]}])
        (tmp_path / name).mkdir()
        found.append(task_identity(str(write_task(tmp_path / name, rows))))
    assert found[0] == found[1] and len(found[0]["files"]) == 2


# What is found before anything is computed


def mistakes(path: Path) -> list[str]:
    return [str(error) for error in check_file(str(path))]


def test_a_sound_run_with_tasks_is_sound(path: Path) -> None:
    assert mistakes(path) == []


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("mistaken")
    yield write_tasks(folder, evaluation={"tasks": ["mine.yaml"]})


def changed(path: Path, old: str, new: str) -> list[str]:
    """Return the mistakes with something changed in the task's file."""
    file = path.with_name("mine.yaml")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    try:
        return mistakes(path)
    finally:
        file.write_text(text)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("rows.jsonl", "none.jsonl", "expected the task's data, found no "),
        ("task: mine", "tsk: mine", "has no key `task`"),
        ("task: mine", "task: mine\ninclude: absent.yaml", "No such file"),
        ("{{choices}}", "{{colour}}", "UndefinedError: 'colour' is undefined"),
        ("{{question}}", "{{''.__class__.__mro__[1].__subclasses__()}}", "SecurityError"),
        ("test_split: test", "test_split: test\nprocess_docs: !function os.abort", "os.abort"),
        ("metric: acc", "metric: a/metric, hf_evaluate: true", "a/metric, of the library evaluate"),
        (
            "aggregation: mean",
            "aggregation: median",
            "mean over rows, higher for better, got acc",
        ),
        ("better: true", "better: false", "mean over rows, higher for better, got acc"),
        ("task: mine", "task: mine\nunsafe_code: true", "whose answers are run as code (mine)"),
        ("json", "owner/name", "the task's data, which cannot be had (ConnectionError"),
    ],
)
def test_a_file_that_cannot_be_taken_is_told(
    other: Path, old: str, new: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (found,) = changed(other, old, new)
    assert said in found and "mine.yaml" in found and "\n  -> " in found


@pytest.mark.slow
def test_an_unknown_name_is_told_with_those_near(other: Path) -> None:
    rewrite(other, {"evaluation": {"tasks": ["arc-easy", "zq"]}})
    near, none = mistakes(other)
    assert "got 'arc-easy'\n  -> did you mean arc_easy" in near
    assert "lm_eval ls tasks" in none
    rewrite(other, {"evaluation": {"tasks": ["mine.yaml"]}})


def test_without_lm_eval_that_alone_is_told(other: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from albat_core.measures import lm_eval

    lm_eval._library.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (found,) = mistakes(other)
    assert "lm-eval, which is not installed" in found and "install albat[lm-eval]" in found


def test_tasks_of_pictures_and_two_of_a_name_are_refused(tmp_path: Path) -> None:
    path = write_image_run(tmp_path, evaluation={"noise_levels": 8, "tasks": ["arc_easy"]})
    (found,) = mistakes(path)
    assert "'evaluation': tasks (arc_easy) compare texts" in found and "line " in found
    rewrite(path, {"evaluation": {"tasks": ["a/mine.yaml", "b/mine.yaml"]}})
    with pytest.raises(ConfigError, match="tasks of different names, mine is there twice"):
        load_config(str(path))


def test_code_of_a_file_runs_where_it_is_trusted_alone(other: Path) -> None:
    rewrite(other, {"evaluation": {"tasks": ["letters.yaml"]}})
    (found,) = mistakes(other)
    rewrite(other, {"evaluation": {"tasks": ["mine.yaml"]}})
    assert "Python code beside lm-eval's own, got functions.measured" in found
    assert "evaluation.trust_remote_code to true" in found
