"""The report page: what must stand in it, what must not, and that it is the same each time."""

import random
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib
import pytest

from albat_core.report import drawing, figures, page, selection_figures, wording
from albat_core.report.content import (
    Arm,
    Curve,
    CurvePoint,
    InputCount,
    Interval,
    ReportContent,
    SelectedExample,
    Selection,
    SourceCount,
    StageTime,
)
from albat_core.report.drawing import NARROW, WIDE

SCRIPT = '<script>alert("x")</script>'

EXAMPLES = [
    (
        "NHLBI",
        "What are the treatments for aplastic anemia? Treatment includes blood transfusions, "
        "blood and marrow stem cell transplants, and medicines. These treatments can prevent or "
        "limit complications, relieve symptoms, and improve quality of life. People who have mild "
        "or moderate aplastic anemia may not need treatment as long as the condition doesn't get "
        "worse. People who have severe aplastic anemia need medical treatment right away to "
        "prevent complications. Transplants replace damaged stem cells with healthy ones from "
        "another person, and work best in children and young adults who are otherwise in good "
        "health and have a matched donor.",
        "How is myelodysplastic syndrome treated? Supportive care is given to lessen the problems "
        "caused by the disease or its treatment, and may include transfusion of blood products.",
    ),
    (
        "NIDDK",
        "What are the risks of a biopsy of the liver? Pain at the site is the most frequent one; "
        "bleeding that needs a transfusion is rare.",
        "Is there a test that finds liver cancer early? Ultrasound and a blood test for "
        "alpha-fetoprotein are offered to people with cirrhosis every six months.",
    ),
    (
        "GHR",
        "Is retinoblastoma inherited? In the hereditary form, mutations in the RB1 gene are "
        "present in all of the body's cells, including reproductive cells.",
        "What increases the risk of retinoblastoma? A parent who had it in both eyes.",
    ),
    ("SeniorHealth", "Who gets skin cancer? Anyone can, and the risk grows with age.", None),
    ("CDC", "Human papillomavirus is the main cause of cervical cancer.", "What causes it? HPV."),
]
SOURCES = {  # corpus rows, candidates, selected, share of the weight
    "GHR": (5430, 2110, 402, 0.213),
    "GARD": (5394, 1630, 188, 0.082),
    "NIDDK": (1192, 1010, 231, 0.121),
    "NINDS": (1088, 560, 74, 0.031),
    "MPlus_Health_Topics": (981, 870, 312, 0.186),
    "SeniorHealth": (769, 700, 298, 0.238),
    "NHLBI": (559, 520, 171, 0.102),
    "CDC": (270, 190, 61, 0.026),
    "wikitext2": (22104, 61, 1, 0.0006),
    "state_union": (3120, 4, 0, 0.0),
    "inaugural": (1512, 0, 0, 0.0),
}


def around(value: float, by: float) -> Interval:
    return Interval(value=value, low=value - by, high=value + by)


def arm(name: str, label: str, loss: float, gain: float | None, **more: Any) -> Arm:
    return Arm(
        name=name,
        label=label,
        loss=around(loss, 0.05),
        gain=None if gain is None else around(gain, 0.019),
        perplexity=2.718281828**loss,
        documents=312,
        units=98_211,
        **more,
    )


def curve(name: str, label: str, start: float, floor: float, best: int) -> Curve:
    points = [CurvePoint(step=0, validation=start)]
    for step in range(20, 401, 20):
        falling = floor + (start - floor) * 0.5 ** (step / (best / 5))
        overfit = 0.00075 * max(0, step - best)
        train = falling - 0.0016 * step
        points.append(CurvePoint(step=step, train=train, validation=falling + overfit))
    return Curve(arm=name, label=label, best_step=best, points=tuple(points))


def shown(number: int, *, useful: bool) -> SelectedExample:
    source, text, nearest = EXAMPLES[number % len(EXAMPLES)]
    return SelectedExample(
        example_id=f"{source}/{number:07d}/{number % 4}",
        source=source,
        text=text,
        score=0.83 - 0.07 * number if useful else -0.41 + 0.03 * number,
        weight=0.0042 - 0.0003 * number if useful else None,
        similarity=0.79 - 0.02 * number,
        nearest_id=None if nearest is None else f"CancerGov/{number:05d}/2",
        nearest_text=nearest,
    )


def sample(**changes: Any) -> ReportContent:
    """A report as a run on medical questions and answers would give it."""
    draw = random.Random(5)
    candidates = tuple(draw.gauss(0.02, 0.21) for _ in range(7655))
    selected = sorted(candidates, reverse=True)[:1738]
    raw = [2.718281828 ** (score / 0.28) for score in selected]
    weights = [weight / sum(raw) for weight in raw]
    content = ReportContent(
        title="Cancer questions",
        created="2026-03-14 09:26 UTC",
        headline="ALBAT reaches 2.520 nats per token on the held-out documents, 0.240 lower than "
        "with adaptation data only (95% interval 0.221 to 0.259). The same number of random "
        "corpus rows reaches 2.610.",
        arms=(
            arm("untouched", "Untouched", 3.54, -0.78),
            arm("adaptation_only", "Adaptation only", 2.76, None, adaptation_rows=214,
                best_step=120, steps=400, seconds=188.0),
            arm("random", "Adaptation + random rows", 2.61, 0.15, adaptation_rows=214,
                backbone_rows=1738, best_step=260, steps=400, seconds=412.4),
            arm("albat", "ALBAT", 2.52, 0.24, adaptation_rows=214, backbone_rows=1738,
                best_step=300, steps=400, seconds=415.9),
        ),
        curves=(
            curve("adaptation_only", "Adaptation only", 3.57, 2.79, 120),
            curve("random", "Adaptation + random rows", 3.57, 2.63, 260),
            curve("albat", "ALBAT", 3.57, 2.53, 300),
        ),
        selection=Selection(
            scorer="surrogate_advantage",
            corpus_rows=42_419,
            candidates=7655,
            selected=1738,
            effective_sample_size=1 / sum(w * w for w in weights),
            sources=tuple(
                SourceCount(source=name, corpus=row[0], candidates=row[1], selected=row[2],
                            weight=row[3])
                for name, row in SOURCES.items()
            ),
            candidate_scores=candidates,
            selected_scores=tuple(selected),
            selected_weights=tuple(weights),
            most_useful=tuple(shown(i, useful=True) for i in range(6)),
            least_useful=tuple(shown(i, useful=False) for i in range(3)),
        ),
        alpha=0.5,
        splits={"train": 58, "validation": 30, "held out": 312, "not used": 329},
        inputs=(
            InputCount(name="corpus/*.parquet", role="corpus", rows=41_902, examples=42_419,
                       notes=("517 long rows were cut up", "12 rows without text were left out")),
            InputCount(name="cancergov.parquet", role="adaptation", rows=729, examples=729),
        ),
        index={"kind": "flat, inner product", "rows": 42_419, "dimension": 384, "recall@64": 1.0},
        stages=(
            StageTime(stage="embed", label="Embed the corpus", rows=42_419, seconds=611.2,
                      reused=True, artifact="embedding/3fa9c1d2e07b44 and 8 more"),
            StageTime(stage="index", label="Build the index", rows=42_419, seconds=2.1,
                      reused=True, artifact="index/77b0e4aa"),
            StageTime(stage="surrogate", label="Train the surrogate", rows=214, seconds=97.4,
                      reused=False, artifact="surrogate/c01d5b3e"),
            StageTime(stage="score", label="Score the candidates", rows=7655, seconds=240.6,
                      reused=False, artifact="scores/9be2a410"),
            StageTime(stage="train", label="Train the adapters", rows=1952, seconds=1016.3,
                      reused=False, artifact="adapter/e4410f7c"),
        ),
        config_yaml="backbone:\n  path: models/small\nselection:\n  target_ess: 0.5\nalpha: 0.5\n",
        versions={"albat": "0.1.0", "torch": "2.9.1", "transformers": "5.1.0", "python": "3.11.9"},
        machine="Linux x86_64, 2 cores, 8 GiB, no GPU",
    )  # fmt: skip
    return content.model_copy(update=changes)


@pytest.fixture(scope="module")
def content() -> ReportContent:
    return sample()


@pytest.fixture(scope="module")
def html(content: ReportContent) -> str:
    return page.render(content)


class Elements(HTMLParser):
    """Every element's attributes by tag, and the text between tags outside of scripts."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)
