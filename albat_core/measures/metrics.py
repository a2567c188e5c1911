"""Metrics of answers, by the names that settings have: a score a row, higher is better."""

import re
import string
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from inspect import getsourcefile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import AlbatError, ConfigError, InputError, MissingDependencyError

Floats = NDArray[np.float64]

MetricFunction = Callable[[list[str], list[str], list[str]], Iterable[float]]
"""Takes answers, references and prompts, in the same order; gives a finite score for each."""

_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Metric:
    """What scores answers.

    Args:
        title: what it is called in tables.
        function: gives the scores.
        library: that it uses, whose version is part of what the scores depend on.
    """

    title: str
    function: MetricFunction
    library: str | None = None


def rouge_l(answers: list[str], references: list[str], prompts: list[str]) -> list[float]:
    """Return ROUGE-L's F-measure of each answer, in [0, 1], as rouge-score has it, unstemmed.

    Raises:
        InputError: no reference has a word of a-z and 0-9, all that it reads.
        MissingDependencyError: rouge-score is not installed.
    """
    del prompts
    try:
        from absl.logging import get_absl_handler
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise MissingDependencyError(
            "the metric rouge_l needs rouge-score, which is not installed",
            where="evaluation.metrics",
            remedy="install albat[metrics], or take rouge_l out",
        ) from error
    # absl, which comes with it, would close what stderr was when logging is set up anew
    get_absl_handler().python_handler.stream = sys.__stderr__
    words = DefaultTokenizer(use_stemmer=False)
    if references and not any(map(words.tokenize, references)):
        raise InputError(
            "expected references with words of the letters a-z, which are all that rouge_l reads, "
            f"got none in {len(references)}",
            where="evaluation.metrics: rouge_l",
            remedy="name a metric for their script, as package.module:function",
        )
    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=words)
    pairs = zip(references, answers, strict=True)
    return [float(scorer.score(*pair)["rougeL"].fmeasure) for pair in pairs]


def exact_match(answers: list[str], references: list[str], prompts: list[str]) -> list[float]:
    """Return 1 where an answer is the reference but for case, punctuation and articles, else 0."""
    del prompts
    pairs = zip(answers, references, strict=True)
    return [float(normalized(answer) == normalized(other)) for answer, other in pairs]


def normalized(text: str) -> str:
    """Return a text as SQuAD's evaluation compares it (arXiv 1606.05250, ``normalize_answer``).

    Lower case, without ASCII punctuation and the words a, an, the; one space between words.
    """
    bare = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())


METRICS: dict[str, Metric] = {
    "rouge_l": Metric("ROUGE-L", rouge_l, "rouge-score"),
    "exact_match": Metric("exact match", exact_match),
}
"""Metrics that settings may name; others are named ``package.module:function``."""


def is_name(name: str) -> bool:
    """Tell whether a metric may have the name; nothing is imported."""
    return name in METRICS or _OWN.fullmatch(name) is not None


def metric_title(name: str) -> str:
    """Return what a metric is called in tables; one's own by its function, a task's as it is."""
    return METRICS[name].title if name in METRICS else name.rpartition(":")[2]


def find_metric(name: str) -> Metric:
    """Return the metric of a name.

    Args:
        name: a key of ``METRICS``, or ``package.module:function``, which is imported.

    Raises:
        ConfigError: the module cannot be imported, or has no such function.
    """
    if name in METRICS:
        return METRICS[name]
    module, _, path = name.partition(":")
    try:
        found: Any = import_module(module)
    except Exception as error:  # a module may raise anything when it is run
        raise ConfigError(
            f"expected a module {module!r} that can be imported, got {_said(error)}",
            where=_where(name),
            remedy="install it, or name the folder that it is in in PYTHONPATH",
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigError(
            f"expected a function {path!r} in {module}, found "
            + ("none" if found is None else type(found).__name__),
            where=_where(name),
            remedy="name it as package.module:function",
        )
    return Metric(metric_title(name), found)


def metric_identity(name: str) -> dict[str, str]:
    """Return what a metric's scores depend on: its library's version, or its module's source.

    Raises:
        ConfigError: see ``find_metric``.
        MissingDependencyError: its library is not installed.
    """
    metric = find_metric(name)
    if metric.library is not None:
        metric.function([], [], [])  # says what is missing
        return {metric.library: version(metric.library)}
    if name in METRICS:
        return {}
    try:
        file = getsourcefile(metric.function)
    except TypeError:
        file = None  # of a compiled module: nothing says when it changes
    return {"source": sha256(Path(file).read_bytes()).hexdigest()} if file else {}


def grade(
    name: str, answers: Sequence[str], references: Sequence[str], prompts: Sequence[str]
) -> Floats:
    """Return a metric's score of each answer, (n,).

    Args:
        name: of the metric.
        answers: that were written, n of them.
        references: the rows' own answers.
        prompts: what was answered.

    Raises:
        ConfigError: it cannot be found, raises, or does not give n finite numbers.
        InputError: it reads nothing of the references.
        MissingDependencyError: its library is not installed.
    """
    metric = find_metric(name)
    try:
        found = list(metric.function(list(answers), list(references), list(prompts)))
        scores = np.array([_number(each) for each in found], np.float64)
    except AlbatError:
        raise
    except Exception as error:  # it may be anybody's
        raise ConfigError(
            f"expected a list of {len(answers)} numbers, one for each answer, got {_said(error)}",
            where=_where(name),
            remedy="score each answer with a number, higher for better; any text may come",
        ) from error
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(scores) != len(answers) or bad.size:
        got = f"{scores[bad[0]]} for answer {bad[0]}" if bad.size else str(len(scores))
        raise ConfigError(
            f"expected {len(answers)} finite scores, one for each answer, got {got}",
            where=_where(name),
            remedy="return a list of one finite number for each answer, in their order",
        )
    return scores


def _number(value: Any) -> float:
    if isinstance(value, str | bytes):
        raise TypeError(f"text among its scores: {value!r:.40}")
    return float(value)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _where(name: str) -> str:
    return f"evaluation.metrics: {name}"
