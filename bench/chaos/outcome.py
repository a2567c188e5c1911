"""What became of faults: the one meaning of survived, wrong and told, and the table of them."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

Draw = Callable[..., np.random.Generator]
"""Gives the generator of a fault by its name: it draws the same whatever was done before."""
NOT_MET = "the fault was not met: the run did not ask for what fails"

_MASKS = (  # what differs from one fault to the next, and how a sentence shows it
    (re.compile(r"(?:s3:/)?(?:/[^\s:,;'\"]+)+/"), ""),
    (re.compile(r"http://[\d.:]+/"), ""),
    (re.compile(r"\b[0-9a-f]{12,}(?:\.\.)?\b"), "…"),
    (re.compile(r"\b[0-9a-f]{8}\b"), "…"),
    (re.compile(r"\d+"), "0"),
)
_LONGEST = 200
BEGIN, END = "<!-- table -->\n", "\n<!-- end of the table -->"
"""What the table stands between on a page."""
_HEAD = [
    "| what is done | times | survived | wrong | what a person sees |",
    "|---|---:|---:|---:|---|",
]
_LINE = re.compile(
    r"\| (?P<name>.+?) \| (?P<times>\d+) \| \d+ \| (?P<wrong>\d+) \| (?P<seen>.+) \|"
)


@dataclass(frozen=True)
class Trial:
    """One fault, after which the run was repeated.

    It is survived where the repeated run ended, every artifact, registry entry and exported file is
    bit for bit that of an undisturbed run but for times, nothing is lost, and whatever was told was
    a sentence. Otherwise it is wrong.

    Args:
        fault: what was done.
        wrong: what is not so; empty where it was survived.
        told: sentences that a person saw.
    """

    fault: str
    wrong: Sequence[str] = ()
    told: Sequence[str] = ()


@dataclass
class Kind:
    """One kind of fault.

    Args:
        name: of the kind.
        silent: what a person sees where nothing is told.
        trials: of it.
    """

    name: str
    silent: str = "nothing: the run goes on"
    trials: list[Trial] = field(default_factory=list)

    @property
    def wrong(self) -> list[Trial]:
        """Those that were not survived."""
        return [trial for trial in self.trials if trial.wrong]

    @property
    def seen(self) -> str:
        """What a person sees most often."""
        sentences = Counter(masked(t.told[0]) if t.told else self.silent for t in self.trials)
        return sentences.most_common(1)[0][0] if sentences else ""

    @property
    def row(self) -> "Row":
        """Its line of the table."""
        return Row(self.name, len(self.trials), len(self.wrong), self.seen.replace("|", "\\|"))


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: of the kind of fault.
        times: that it was done.
        wrong: those that were not survived.
        seen: what a person sees most often, as Markdown.
    """

    name: str
    times: int
    wrong: int
    seen: str = ""

    def __str__(self) -> str:
        cells = (self.name, self.times, self.times - self.wrong, self.wrong)
        return f"| {' | '.join(map(str, cells))} | {self.seen and f'{self.seen} '}|"


def masked(sentence: str) -> str:
    """Return a sentence without what differs from one fault to the next."""
    text = " ".join(sentence.split())
    for pattern, shown in _MASKS:
        text = pattern.sub(shown, text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def table(rows: Sequence[Row]) -> str:
    """Return the table in Markdown, one line a kind, and the sum."""
    total = Row("**all**", sum(row.times for row in rows), sum(row.wrong for row in rows))
    return "\n".join([*_HEAD, *map(str, [*rows, total])])


def joined(there: str, kinds: Iterable[Kind]) -> str:
    """Return a table with the lines of kinds in place of those that it has of them.

    Args:
        there: the table; empty where there is none.
        kinds: that were done since.
    """
    found = (match.groups() for match in map(_LINE.fullmatch, there.splitlines()) if match)
    before = [Row(name, int(times), int(wrong), seen) for name, times, wrong, seen in found]
    rows = {row.name: row for row in before} | {kind.name: kind.row for kind in kinds}
    return table(list(rows.values()))


class Notes:
    """Trials by kind, as a file keeps them from one command to the next.

    Args:
        file: with a line for each; none: they are kept for this command alone.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self.kinds: dict[str, Kind] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file and file.exists() else ():
            noted = json.loads(line)
            self._add(noted["kind"], noted["silent"], Trial(**noted["trial"]))

    def _add(self, kind: str, silent: str, trial: Trial) -> None:
        self.kinds.setdefault(kind, Kind(kind, silent)).trials.append(trial)

    def note(self, kind: str, silent: str, trial: Trial) -> None:
        """Keep a trial.

        Args:
            kind: of fault.
            silent: see ``Kind``.
            trial: that has ended.
        """
        self._add(kind, silent, trial)
        if self._file:
            noted = {"kind": kind, "silent": silent, "trial": asdict(trial)}
            with self._file.open("a") as lines:
                lines.write(f"{json.dumps(noted)}\n")

    def count(self, kind: str) -> int:
        """Return how many there are of the kinds whose name begins so."""
        return sum(len(k.trials) for k in self.kinds.values() if k.name.startswith(kind))
