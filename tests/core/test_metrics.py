"""Metrics of answers: ROUGE-L is rouge-score's own, exact match SQuAD's; one's own are held to."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from albat_core.errors import ConfigError, InputError, MissingDependencyError
from albat_core.measures.metrics import (
    exact_match,
    find_metric,
    grade,
    metric_identity,
    metric_title,
    normalized,
    rouge_l,
)
from albat_core.stages.evaluate import EvaluationConfig

ANSWERS = ["The cat sat on a mat.", "", "seven of 9 ships", "on the mat the cat sat"]
REFERENCES = ["the cat sat on the mat", "leaf", "Seven ships", "the cat sat on the mat"]
PROMPTS = ["where?", "what?", "who?", "where?"]
OWN = """
import math

def letters(answers, references, prompts):
    return [abs(len(a) - len(r)) + len(p) / 8 for a, r, p in zip(answers, references, prompts)]

class Scorers:
    @staticmethod
    def truth(answers, references, prompts):
        return (a == r for a, r in zip(answers, references))

def few(answers, references, prompts):
    return [1.0]

def words(answers, references, prompts):
    return ["1.0"] * len(answers)

def nothing(answers, references, prompts):
    pass

def lost(answers, references, prompts):
    return [math.nan if not a else 1.0 for a in answers]

def parsing(answers, references, prompts):
    return [float(a) for a in answers]

number = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of somebody's, where Python finds it."""
    file = tmp_path / "own_metrics.py"
    file.write_text(OWN)
    (tmp_path / "broken_metrics.py").write_text("raise RuntimeError('no licence')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_metrics", raising=False)
    return file


def test_rouge_l_is_the_f_measure_of_rouge_score() -> None:
    found = rouge_l(ANSWERS, REFERENCES, PROMPTS)
    from rouge_score.rouge_scorer import RougeScorer  # not before: its logging holds on to stderr

    plain = RougeScorer(["rougeL"])
    expected = [
        plain.score(target=r, prediction=a)["rougeL"].fmeasure
        for r, a in zip(REFERENCES, ANSWERS, strict=True)
    ]
    assert found == expected
    assert expected == pytest.approx([5 / 6, 0, 2 / 3, 1 / 2])  # by hand
    assert rouge_l(["seven"], ["seven or eight"], [""]) == pytest.approx([1 / 2])
    assert rouge_l(["ships"], ["ship"], [""]) == [0]  # no word is stemmed


def test_logging_that_is_set_up_anew_leaves_stderr_open() -> None:
    code = (
        "import io, logging.config, sys; sys.stderr = before = io.StringIO()\n"
        "from albat_core.measures.metrics import rouge_l; rouge_l(['a'], ['a'], [''])\n"
        "sys.stderr = sys.__stderr__; logging.config.dictConfig({'version': 1})\n"
        "print(before.closed)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_script_that_rouge_l_does_not_read_is_refused_and_not_scored_0() -> None:
    with pytest.raises(InputError, match=r"letters a-z.*got none in 2"):
        grade("rouge_l", ["мир", ""], ["мир", "东京"], ["", ""])
    assert rouge_l(["мир", "one"], ["мир", "one"], ["", ""]) == [0, 1]


def test_rouge_l_says_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingDependencyError) as caught:
        metric_identity("rouge_l")
    assert "albat[metrics]" in caught.value.remedy


@pytest.mark.parametrize(
    ("text", "alike"),
    [
        ("The U.S.A.!", "usa"),
        ("  an  apple,\n a   day ", "apple day"),
        ("there", "there"),  # no article, though it begins with one
        ("A b A", "b"),
        ("well-known", "wellknown"),
        ("Ünder", "ünder"),
        ("the", ""),
    ],
)
def test_texts_are_compared_as_squad_does(text: str, alike: str) -> None:
    assert normalized(text) == alike


def test_exact_match_is_1_or_0() -> None:
    answers, references = ["Leaf!", "a leaf", "leaf root", ""], ["the leaf", "leaf", "leaf", "the"]
    assert exact_match(answers, references, [""] * 4) == [1, 1, 0, 1]


def test_a_function_of_one_s_own_is_given_answers_references_and_prompts(own: Path) -> None:
    found = grade("own_metrics:letters", ["leaf", ""], ["le", "root"], ["12345678", "1234"])
    assert found.tolist() == [3.0, 4.5]
    found = grade("own_metrics:Scorers.truth", ["leaf", ""], ["leaf", "root"], ["", ""])
    assert found.tolist() == [1.0, 0.0]
    assert metric_title("own_metrics:Scorers.truth") == "Scorers.truth"
    assert find_metric("own_metrics:letters").title == "letters"


def test_scores_depend_on_the_source_of_the_function(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = metric_identity("own_metrics:letters")
    assert metric_identity("own_metrics:letters") == before != {}
    own.write_text(OWN.replace("/ 8", "/ 4"), encoding="utf-8")
    assert metric_identity("own_metrics:letters") != before
    assert set(metric_identity("rouge_l")) == {"rouge-score"}
    assert metric_identity("exact_match") == {}


def test_the_documented_function_is_a_metric(own: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "method.md").read_text()
    found = re.search(r"<!-- tested: metric -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found
    own.with_name("documented.py").write_text(found[1])
    scores = grade("documented:shared_words", ["a b", "", "d"], ["b c", "b", ""], ["", "", ""])
    assert scores.tolist() == [0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:f", r"'no_such_module' that can be imported, got ModuleNotFoundError"),
        ("broken_metrics:f", r"got RuntimeError: no licence"),
        ("own_metrics:nowhere", r"a function 'nowhere' in own_metrics, found none"),
        ("own_metrics:number", r"found int"),
        ("own_metrics:few", r"expected 2 finite scores, one for each answer, got 1"),
        ("own_metrics:words", r"expected a list of 2 numbers.*text among its scores: '1.0'"),
        ("own_metrics:nothing", r"expected a list of 2 numbers.*TypeError"),
        ("own_metrics:lost", r"expected 2 finite scores.*got nan for answer 1"),
        ("own_metrics:parsing", r"expected a list of 2 numbers.*ValueError: could not convert"),
    ],
)
def test_a_function_that_is_not_there_or_gives_no_scores_is_told(
    own: Path, name: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        grade(name, ["leaf", ""], ["leaf", "root"], ["", ""])
    assert caught.value.where == f"evaluation.metrics: {name}"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (["rouge"], "expected rouge_l, exact_match or package.module:function, got 'rouge'"),
        (["own.metrics"], "got 'own.metrics'"),
        (["a b:c"], "got 'a b:c'"),
        (["rouge_l", "rouge_l"], "ROUGE-L is there twice"),
        (["one:score", "two:score"], "score is there twice"),
    ],
)
def test_metrics_have_names_that_tables_can_tell_apart(metrics: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EvaluationConfig(metrics=metrics)
