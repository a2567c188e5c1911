"""The report page: what must stand in it, what must not, and that it is the same each time."""

import base64
import hashlib
import os
import random
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core.records.losses import LOSS_SCHEMA, LOSSES
from albat_core.records.mixtures import RowChanges
from albat_core.records.runs import ArmRun
from albat_core.report import drawing, figures, gathering, page, selection_figures, wording
from albat_core.report.content import (
    NATS,
    Arm,
    Changes,
    Curve,
    CurvePoint,
    InputCount,
    Interval,
    Metric,
    NoiseLevels,
    PixelError,
    RankAgreement,
    ReportContent,
    Sample,
    SampleGrid,
    SampleRow,
    SelectedExample,
    Selection,
    SourceCount,
    StageTime,
)
from albat_core.report.drawing import NARROW, WIDE
from albat_core.report.gathering import headline
from albat_core.store.artifacts import ArtifactStore, Built

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


OVER_RANDOM = {"untouched": -0.93, "adaptation_only": -0.15, "albat": 0.09}


def arm(name: str, label: str, loss: float, gain: float | None, **more: Any) -> Arm:
    return Arm(
        name=name,
        label=label,
        loss=around(loss, 0.05),
        gain=None if gain is None else around(gain, 0.019),
        over_random=around(OVER_RANDOM[name], 0.015) if name in OVER_RANDOM else None,
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
        "with adaptation data only (95% interval 0.221 to 0.259) and 0.090 lower than with as "
        "many random corpus rows (95% interval 0.075 to 0.105).",
        arms=(
            arm("untouched", "Untouched", 3.54, -0.78),
            arm(
                "adaptation_only",
                "Adaptation only",
                2.76,
                None,
                adaptation_rows=214,
                best_step=120,
                steps=400,
                seconds=188.0,
            ),
            arm(
                "random",
                "Adaptation + random rows",
                2.61,
                0.15,
                adaptation_rows=214,
                backbone_rows=1738,
                best_step=260,
                steps=400,
                seconds=412.4,
            ),
            arm(
                "albat",
                "ALBAT",
                2.52,
                0.24,
                adaptation_rows=214,
                backbone_rows=1738,
                best_step=300,
                steps=400,
                seconds=415.9,
            ),
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
                SourceCount(
                    source=name, corpus=row[0], candidates=row[1], selected=row[2], weight=row[3]
                )
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
            InputCount(
                name="corpus/*.parquet",
                role="corpus",
                rows=41_902,
                examples=42_419,
                notes=("517 long rows were cut up", "12 rows without text were left out"),
            ),
            InputCount(name="cancergov.parquet", role="adaptation", rows=729, examples=729),
        ),
        index={"kind": "flat, inner product", "rows": 42_419, "dimension": 384, "recall@64": 1.0},
        stages=(
            StageTime(
                stage="embed",
                label="Embed the corpus",
                rows=42_419,
                seconds=611.2,
                reused=True,
                artifact="embedding/3fa9c1d2e07b44 and 8 more",
            ),
            StageTime(
                stage="index",
                label="Build the index",
                rows=42_419,
                seconds=2.1,
                reused=True,
                artifact="index/77b0e4aa",
            ),
            StageTime(
                stage="surrogate",
                label="Train the surrogate",
                rows=214,
                seconds=97.4,
                reused=False,
                artifact="surrogate/c01d5b3e",
            ),
            StageTime(
                stage="score",
                label="Score the candidates",
                rows=7655,
                seconds=240.6,
                reused=False,
                artifact="scores/9be2a410",
            ),
            StageTime(
                stage="train",
                label="Train the adapters",
                rows=1952,
                seconds=1016.3,
                reused=False,
                artifact="adapter/e4410f7c",
            ),
        ),
        config_yaml="backbone:\n  path: models/small\nselection:\n  target_ess: 0.5\nalpha: 0.5\n",
        versions={"albat": "0.1.0", "torch": "2.9.1", "transformers": "5.1.0", "python": "3.11.9"},
        machine="Linux x86_64, 2 cores, 8 GiB, no GPU",
    )
    return content.model_copy(update=changes)


def changed(**values: Any) -> Changes:
    """What a re-selection with two new adaptation rows changed."""
    changes = Changes(
        adaptation=RowChanges(entered=("own-1", "own-2"), left=(), stayed=212),
        backbone=RowChanges(
            entered=tuple(f"in-{n}" for n in range(9)),
            left=tuple(f"out-{n}" for n in range(7)),
            stayed=200,
        ),
        moved=0.1234,
        alpha=(0.41, 0.452),
        multiplier=(2.14, 2.6),
        worth=True,
        threshold=0.1,
        came=tuple(named(f"in-{n}") for n in range(6)),
        went=tuple(named(f"out-{n}") for n in range(2)),
    )
    return changes.model_copy(update=values)


def named(name: str) -> SelectedExample:
    return shown(1, useful=True).model_copy(update={"example_id": name})


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


def rows_of(html: str, caption: str) -> list[str]:
    """The rows' words of the table in the region of that name."""
    table = re.search(rf'aria-label="{caption}">\s*<table>(.*?)</table>', html, re.DOTALL)
    assert table, caption
    body = table[1].split("<tbody>")[1]
    return [" ".join(" ".join(Elements(row).words).split()) for row in body.split("</tr>")[:-1]]


def charts_of(html: str) -> list[str]:
    return re.findall(r"<svg class=\"chart.*?</svg>", html, re.DOTALL)


def test_every_arm_stands_in_the_table_with_its_interval(html: str, content: ReportContent) -> None:
    rows = rows_of(html, "Arms")
    assert len(rows) == 4
    for arm_, row in zip(content.arms, rows, strict=True):
        assert arm_.label in row
        assert wording.fixed(arm_.loss.value) in row
        assert f"{arm_.loss.low:.3f} to {arm_.loss.high:.3f}" in row
    assert "+0.240" in rows[3] and "0.221 to 0.259" in rows[3] and "12.4" in rows[3]
    assert "+0.090 0.075 to 0.105" in rows[3] and "−0.150 −0.165 to −0.135" in rows[1]
    assert "214 + 1,738" in rows[3] and "300 of 400" in rows[3] and "6 min 56 s" in rows[3]
    assert "lowest loss" in rows[3] and not any("lowest loss" in row for row in rows[:3])
    assert "−0.780" in rows[0]


def test_the_charts_of_arms_name_and_measure_each_arm(content: ReportContent) -> None:
    widths = {"untouched": 0.02, "adaptation_only": 0.04, "random": 0.06, "albat": 0.08}
    arms = [
        a.model_copy(update={"loss": around(a.loss.value, widths[a.name])}) for a in content.arms
    ]
    for width in (WIDE, NARROW):
        drawn = figures.arms(arms, "albat", NATS, width)
        assert drawn is not None
        lengths = []
        for arm_, name in zip(arms, ("untouched", "adaptation", "random", "albat"), strict=True):
            line = (
                rf'd="M ([\d.]+) [\d.]+ ?\nL ([\d.]+) [\d.]+ ?\n" [^>]*stroke: var\(--arm-{name}\)'
            )
            ends = re.search(line, drawn)
            assert ends, (width, name)
            lengths.append((float(ends[2]) - float(ends[1])) / widths[arm_.name])
            assert wording.between(arm_.loss) in drawn
        assert lengths == pytest.approx([lengths[0]] * 4, rel=1e-3)
        words = Elements(drawn).words
        assert all(any(a.label in word for word in words) for a in arms)
        assert "+0.240" in words and "◂ −0.780" in words


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_no_gain_is_written_across_the_line_at_zero(content: ReportContent, width: int) -> None:
    gains = {"random": -0.012, "albat": -0.05}
    arms = [
        a.model_copy(update={"gain": around(gains[a.name], 0.007)}) if a.name in gains else a
        for a in content.arms
    ]
    drawn = figures.arms(arms, "albat", NATS, width)
    assert drawn is not None
    line = re.search(r'd="M ([\d.]+) [\d.]+ ?\nL \1 [\d.]+ ?\n" [^>]*stroke: var\(--muted\)', drawn)
    assert line
    at = {gain: re.search(rf'x="([\d.]+)"[^>]*>{gain}<', drawn) for gain in ("−0.012", "−0.050")}
    near, far = (float(found[1]) for found in at.values() if found)
    assert 5 < near - float(line[1]) < 15  # it would cross from its interval's end
    assert far + 9 * len("−0.050") < float(line[1])


def test_what_was_selected_mixed_and_timed_is_told(html: str) -> None:
    words = " ".join(" ".join(Elements(html).words).split())
    for told in (
        "Of 42,419 corpus rows 7,655 became candidates",
        "1,738 were selected. Their weights differ: they count as 1,403 rows",
        "50% selected rows (α = 0.50)",
        "set by hand",
        "517 long rows were cut up",
        "The stages made in this run took 22 min 34 s.",
        "which saved 10 min 13 s",
        "embedding/3fa9c1d2e07b44 and 8 more",
        "target_ess: 0.5",
        "2.9.1",
        "8 GiB, no GPU",
        "2026-03-14 09:26 UTC",
        "recall@64 1.000",
    ):
        assert told in words, told
    sources = rows_of(html, "Sources")
    assert sources[0].startswith("SeniorHealth") and "×13.1" in sources[0]
    assert len(sources) == len(SOURCES)
    assert html.count('<article class="card">') == 9
    assert "not selected" in words and "(×7.3 an equal share)" in words


def text_of(html: str) -> str:
    return " ".join(" ".join(Elements(html).words).split())


def test_a_computed_verdict_is_shown() -> None:
    words = text_of(page.render(sample(verdict="Worth 3.1 times your data: mix.")))
    assert "Worth 3.1 times your data: mix." in words
    assert "set by hand" not in words
    assert "set by hand" in text_of(page.render(sample()))


@pytest.mark.parametrize(
    ("copies", "told"),
    [
        (1234, "1,234 candidates had been left out"),
        (1, "1 candidate had been left out before because it repeats"),
        (0, "No candidates had been left out"),
        (None, ""),
    ],
)
def test_candidates_left_out_are_counted(copies: int | None, told: str) -> None:
    content = sample()
    selection = content.selection.model_copy(update={"copies": copies})
    words = text_of(page.render(content.model_copy(update={"selection": selection})))
    assert told in words
    assert ("left out before" in words) == (copies is not None)


def test_text_of_the_data_never_becomes_markup(content: ReportContent) -> None:
    example = content.selection.most_useful[0].model_copy(
        update={
            "text": SCRIPT + " word" * 200,
            "source": SCRIPT,
            "nearest_text": SCRIPT,
            "example_id": SCRIPT,
            "nearest_id": '" onclick="x',
        }
    )
    source = SourceCount(source=SCRIPT, corpus=50_000, candidates=1, selected=1, weight=0.5)
    selection = content.selection.model_copy(
        update={
            "most_useful": (example,),
            "scorer": SCRIPT,
            "sources": (source, *content.selection.sources),
        }
    )
    hostile = page.render(
        sample(
            title=SCRIPT,
            headline=SCRIPT,
            created=SCRIPT,
            machine=SCRIPT,
            arms=tuple(a.model_copy(update={"label": SCRIPT}) for a in content.arms),
            curves=tuple(c.model_copy(update={"label": SCRIPT}) for c in content.curves),
            selection=selection,
            splits={SCRIPT: 3},
            index={SCRIPT: SCRIPT},
            inputs=(InputCount(name=SCRIPT, role=SCRIPT, rows=1, examples=1, notes=(SCRIPT,)),),
            stages=(content.stages[0].model_copy(update={"label": SCRIPT, "artifact": SCRIPT}),),
            config_yaml=SCRIPT + "</code></pre>",
            versions={SCRIPT: SCRIPT},
            changes=changed(came=(example,), went=(example,)),
        )
    )
    assert SCRIPT not in hostile
    found = Elements(hostile).found
    assert [tag for tag, _ in found].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    in_charts = [word for svg in charts_of(hostile) for word in Elements(svg).words]
    assert any(SCRIPT[:8] in word for word in in_charts)


def test_labels_that_look_like_formulas_or_styles_are_shown_as_they_are() -> None:
    names = ["$x_1$ and $\\frac$", 'style="fill: #a1ba00" id="a"', "中文 עברית", "a\x00b\nc"]
    shares = [selection_figures.SourceShare(name, 0.1, 0.2, 2.0) for name in names]
    drawn = selection_figures.sources(shares, NARROW)
    assert drawn is not None
    words = Elements(drawn).words
    for name in [*names[:3], "a b c", "×2.0"]:
        assert name in words, name


def test_the_page_loads_nothing_and_runs_only_its_own_script(html: str) -> None:
    elements = Elements(html)
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:image/")) or target == "data:,"
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))
    assert not re.search("https?:", html)  # nor a namespace: HTML needs none
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in html


@pytest.mark.slow
def test_equal_content_gives_the_same_page_whatever_the_process(
    html: str, content: ReportContent
) -> None:
    with matplotlib.rc_context({"font.size": 31, "svg.fonttype": "path", "axes.grid": True}):
        before = dict(matplotlib.rcParams)
        assert page.render(content) == html
        assert dict(matplotlib.rcParams) == before
    program = (
        "import sys; from albat_core.report.page import render;"
        "from albat_core.report.content import ReportContent as C;"
        "sys.stdout.buffer.write(render(C.model_validate_json(sys.stdin.read())).encode())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        input=content.model_dump_json().encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert other.stdout.decode() == html


def test_ids_are_unique_and_every_reference_has_its_target(html: str) -> None:
    ids = [a["id"] for _, a in Elements(html).found if "id" in a]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:url\(|href=")#([^)"]+)', html)
    assert targets and set(targets) <= set(ids)


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6}|rgb[^;]+);", css))


def test_charts_take_every_colour_from_the_page_in_light_and_dark(html: str) -> None:
    light, dark = variables(str(page._own("page.css"))), variables(str(page._own("dark.css")))
    assert set(light) == set(dark)
    charts = charts_of(html)
    assert len(charts) == 8  # three in two widths, two in one
    for svg in charts:
        tags = "".join(re.findall(r"<[^>]*>", svg))
        assert not re.search("#[0-9a-fA-F]{6}|rgb|font-family|<style", tags)
        assert set(re.findall(r"var\((--[\w-]+)\)", tags)) <= set(light)


@pytest.mark.parametrize("sheet", ["page.css", "dark.css"])
def test_writing_and_lines_stand_out_from_the_paper(sheet: str) -> None:
    colours = variables(str(page._own(sheet)))

    def luminance(name: str) -> float:
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    least = {name: 3.0 for name in colours if name.startswith("--arm")}
    assert len(least) >= 4
    least |= {"--ink": 7, "--muted": 4.5, "--accent": 4.5}
    for paper in ("--paper", "--card"):
        for name, ratio in least.items():
            low, high = sorted((luminance(name), luminance(paper)))
            assert (high + 0.05) / (low + 0.05) >= ratio, (name, paper)  # WCAG 2.2


def test_what_a_re_selection_changed_is_told_in_its_report_and_on_a_page(html: str) -> None:
    changes = changed()
    for page_ in (
        page.render(sample(changes=changes)),
        page.render_changes(changes, "cancer", "2026-03-14 09:26 UTC"),
    ):
        assert rows_of(page_, "Changes") == [
            "Adaptation rows 212 0 2 214",
            "Selected rows 207 7 9 209",
            "Mixing weight α 0.410 0.452",
            "Predicted data multiplier ×2.1 ×2.6",
        ]
        assert text_of(page_).count(wording.decision(changes)) == 1
        came, went = page_.split("<h3>Came in</h3>")[1].split("<h3>Went out</h3>")
        went = went.split("</section>")[0]
        for part, examples in ((came, changes.came), (went, changes.went)):
            ids = re.findall(r">((?:in|out)-\d)</code>", part)
            assert ids == [example.example_id for example in examples]
        assert f"0.39% ({wording.times(207 * 0.0039)} an equal share)" in text_of(went)
        elements = Elements(page_)
        ids = [a["id"] for _, a in elements.found if "id" in a]
        assert len(ids) == len(set(ids)) and "changes" in ids
    assert 'id="changes"' not in html and 'href="#changes"' not in html
    assert SCRIPT not in page.render_changes(changes, SCRIPT, SCRIPT)


def test_whether_a_new_fine_tuning_is_worth_it_is_said_with_the_numbers() -> None:
    assert wording.decision(changed()) == (
        "12.3% of the objective's weight is on other rows than before (reselection.threshold: "
        "10.0%): a new fine-tuning is worth it."
    )
    less = wording.decision(changed(moved=0.02, worth=False))
    assert less.startswith("2.0% of") and less.endswith("10.0%): no new fine-tuning is needed.")
    by_hand = wording.changes_table(changed(multiplier=(None, None)))
    assert len(by_hand) == 4
    assert by_hand[-1] == ("Mixing weight α", "0.410", "", "", "0.452")
    assert len(wording.changes_table(changed(alpha=(0.0, 0.0)))) == 5
    since = wording.changes_table(changed(multiplier=(None, 2.6)))
    assert since[-1] == ("Predicted data multiplier", "–", "", "", "×2.6")


def bare(**changes: Any) -> ReportContent:
    """A report of a run of which next to nothing is known."""
    nothing = Selection(
        scorer="random",
        corpus_rows=0,
        candidates=0,
        selected=0,
        effective_sample_size=0.0,
        sources=(),
        candidate_scores=(),
        selected_scores=(),
        selected_weights=(),
        most_useful=(),
        least_useful=(),
    )
    empty: dict[str, Any] = {
        "arms": (),
        "curves": (),
        "selection": nothing,
        "splits": {},
        "inputs": (),
        "index": {},
        "stages": (),
        "versions": {},
        "config_yaml": "",
    }
    return sample(**(empty | changes))


def test_a_run_of_which_nothing_is_known_is_told_so() -> None:
    html = page.render(bare())
    for told in (
        "No arm was evaluated",
        "No learning curves were recorded",
        "Nothing was selected",
        "No times were recorded",
        "No inputs were counted",
    ):
        assert told in html
    assert charts_of(html) == [] and "None" not in html and "nan" not in html.split("<body>")[1]


def test_an_arm_that_was_best_at_its_last_step_is_told(content: ReportContent) -> None:
    for steps, told in ((400, 0), (300, 1)):
        arms = [
            a.model_copy(update={"steps": steps}) if a.name == "albat" else a for a in content.arms
        ]
        html = page.render(content.model_copy(update={"arms": tuple(arms)}))
        assert html.count("still improving") == told


def test_fewer_rows_than_wanted_are_told(content: ReportContent) -> None:
    chosen = content.selection
    for wanted, told in ((None, 0), (chosen.selected, 0), (chosen.selected + 7, 1)):
        changed = chosen.model_copy(update={"wanted": wanted})
        html = page.render(content.model_copy(update={"selection": changed}))
        assert html.count("no more candidates could be selected") == told
    assert f"fewer than the {chosen.selected + 7:,} asked for" in html


def test_control_characters_are_shown_as_pictures_of_them(content: ReportContent) -> None:
    spoilt = "a\0b\x1b[31mc\x7fd\x85e\nf\tg<i>\ufffe"
    example = content.selection.most_useful[0].model_copy(
        update={"text": spoilt, "source": spoilt, "example_id": spoilt, "nearest_text": spoilt}
    )
    source = content.selection.sources[0].model_copy(update={"source": spoilt})
    chosen = content.selection.model_copy(
        update={"most_useful": (example,), "sources": (source, *content.selection.sources[1:])}
    )
    html = page.render(content.model_copy(update={"selection": chosen, "title": spoilt}))
    kinds = {letter: unicodedata.category(letter) for letter in set(html)}
    assert {letter for letter, kind in kinds.items() if kind in ("Cc", "Cn")} == {"\n", "\t"}
    assert "a\N{SYMBOL FOR NULL}b\N{SYMBOL FOR ESCAPE}[31mc\N{SYMBOL FOR DELETE}d\ufffde" in html
    assert "f\tg&lt;i&gt;\ufffd" in html


def test_parts_that_are_missing_leave_the_others_standing(content: ReportContent) -> None:
    nan = float("nan")
    alone = arm("albat", "ALBAT", 2.52, None)
    broken = alone.model_copy(
        update={
            "name": "random",
            "label": "Broken",
            "loss": around(nan, nan),
            "perplexity": float("inf"),
        }
    )
    unranked = content.selection.model_copy(
        update={
            "candidate_scores": (),
            "selected_scores": (),
            "most_useful": (
                shown(3, useful=True).model_copy(
                    update={"score": None, "weight": None, "similarity": None}
                ),
            ),
        }
    )
    point = Curve(arm="albat", label="ALBAT", best_step=5, points=(CurvePoint(step=5),))
    html = page.render(bare(arms=(alone, broken), curves=(point,), selection=unranked))
    rows = rows_of(html, "Arms")
    assert "2.520" in rows[0] and "lowest loss" in rows[0]
    assert "Broken" in rows[1] and "– to –" not in rows[1] and "nan" not in rows[1]
    assert "the lowest. 95% interval 2.470 to 2.570" in html  # no gain: the loss is the number
    assert "No learning curves were recorded" in html and "they were not ranked" in html
    assert "not known" in html


def test_no_clear_difference_is_called_that(content: ReportContent) -> None:
    close = content.arms[3].model_copy(update={"gain": around(0.01, 0.03)})
    html = page.render(bare(arms=(content.arms[1], close)))
    assert html.count("no clear difference") == 2 and 'class="number big even"' in html


def test_the_headline_writes_numbers_as_the_table_does(content: ReportContent) -> None:
    nil = Interval(value=-0.0002, low=-0.01, high=0.0003)
    close = content.arms[3].model_copy(update={"gain": nil})
    said = headline([content.arms[1], close], "nats per token")
    assert "adaptation data only (0.000, 95% interval −0.010 to 0.000)" in said


def against(content: ReportContent, gain: float, over_random: float, **more: Any) -> list[Arm]:
    """The arms, of which ALBAT came to these gains."""
    gains = {"gain": around(gain, 0.02), "over_random": around(over_random, 0.015)}
    return [*content.arms[:3], content.arms[3].model_copy(update=gains | more)]


def test_the_headline_says_when_random_rows_won_or_nothing_was_mixed_in(
    content: ReportContent,
) -> None:
    lost = headline(against(content, 0.06, -0.09), NATS)
    assert lost.startswith("Random rows did better than selected ones: ALBAT reaches 2.520")
    assert "0.090 higher than with as many random corpus rows (95% interval 0.075 to 0.105)" in lost
    assert "do not mix" not in lost
    tied = headline(against(content, 0.15, 0.004), NATS)
    assert "no clear difference from as many random corpus rows (+0.004, 95%" in tied
    harmful = [a for a in against(content, -0.1, 0.05) if a.name != "random"]
    assert headline(harmful, NATS).endswith(
        "(95% interval 0.035 to 0.065): do not mix this corpus in."
    )
    preferred = headline(against(content, 0.0, 0.0, backbone_rows=0), NATS, alpha=0.07)
    assert preferred.startswith(
        "Validation documents prefer adaptation data alone to alpha 0.07: ALBAT is adaptation data"
    )
    wrong = "The verdict, which called mixing likely to pay, was wrong here."
    assert (
        preferred
        != f"{preferred} {wrong}"
        == headline(against(content, 0.0, 0.0, backbone_rows=0), NATS, alpha=0.07, outlook="likely")
    )
    assert headline(harmful, NATS, 0.5, "likely").endswith(wrong)
    for right in (
        headline(harmful, NATS, 0.5, "unclear"),
        headline(content.arms, NATS, 0.5, "likely"),
    ):
        assert wrong not in right
    nothing = headline(against(content, 0.0, 0.0, backbone_rows=0), NATS)
    assert nothing.startswith("Nothing was mixed in") and "2.520 nats per token" in nothing
    with_all = headline(against(content, 0.15, 0.09, over_all_data=around(0.05, 0.02)), NATS)
    assert with_all.count(", 0.") == 2  # one after the other, and the last by "and"
    assert " and 0.050 lower than with all of the adaptation data (95% interval 0.030" in with_all
    alone = content.arms[3].model_copy(update={"gain": None})
    assert "(95% interval 0.075 to 0.105); no arm with" in headline([alone], NATS)


@pytest.mark.parametrize(("documents", "told"), [(1, "1 document is"), (9, "only 9"), (10, "")])
def test_few_held_out_documents_are_cautioned_about(
    content: ReportContent, documents: int, told: str
) -> None:
    few = tuple(a.model_copy(update={"documents": documents}) for a in content.arms)
    caution = wording.caution(few)
    assert (caution is None) == (not told)
    words = text_of(page.render(sample(arms=few)))
    assert (f"Caution: {told}" in words) if told else ("Caution" not in words)


@pytest.mark.parametrize(("documents", "told"), [(1, "1 held-out document"), (9, "9"), (10, "")])
def test_few_that_were_answered_or_drawn_are_cautioned_about(documents: int, told: str) -> None:
    even = Interval(value=0.4, low=0.4, high=0.4)
    metric = Metric(name="rouge_l", title="ROUGE-L", value=even, documents=documents)
    drawn = PixelError(name="albat", label="ALBAT", error=even, pictures=40, documents=documents)
    arms = tuple(arm.model_copy(update={"metrics": (metric,)}) for arm in sample().arms)
    for what, words in (
        ("answers are of", wording.caution(arms)),
        ("drawings are of", wording.caution(sample().arms, [drawn])),
    ):
        assert (f"{what} {told}" in words) if words else not told
    shown = text_of(page.render(sample(pixel_errors=(drawn,))))
    assert ("drawings are of" in shown) == bool(told)


def test_arms_are_compared_with_random_rows_by_document(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    units = [10, 30, 20]
    totals = {"random": [30.0, 90.0, 50.0], "albat": [28.0, 81.0, 51.0]}

    def evaluated(arm: str) -> ArmRun:
        def build(folder: Path) -> Built:
            documents = ["a", "b", "c"]
            columns = [documents, documents, totals[arm], units]
            pq.write_table(pa.table(columns, schema=LOSS_SCHEMA), folder / LOSSES)
            return Built(rows=3, facts={"unit": NATS})

        ref = store.produce("evaluation", 1, {"arm": arm}, {}, build)
        return ArmRun(name=arm, label=arm, adapter=None, evaluation=ref)

    random_, albat = gathering.compare_arms(store, [evaluated("random"), evaluated("albat")], 0)
    assert random_.over_random is None and albat.gain is None and albat.over_random is not None
    assert albat.over_random.value == pytest.approx((2 + 9 - 1) / 60)
    # the extremes of three documents drawn with replacement: thrice the best, thrice the worst
    assert albat.over_random.low >= -1 / 20 and albat.over_random.high <= 9 / 30
    assert albat.over_random.low < albat.over_random.value < albat.over_random.high


def test_learning_curves_are_drawn_at_the_scale_of_what_is_learned() -> None:
    def heights(first: float, best: int) -> tuple[float, str]:
        losses = [first, 2.7, 2.6]
        points = [CurvePoint(step=10 * n, validation=v) for n, v in enumerate(losses)]
        one = Curve(arm="albat", label="ALBAT", best_step=best, points=tuple(points))
        drawn = figures.curves([one], NATS, WIDE)
        assert drawn is not None
        path = re.search(r'd="(M [^"]*)" [^>]*stroke: var\(--arm-albat\)', drawn)
        assert path
        at = [float(y) for y in re.findall(r"[ML] [\d.-]+ ([\d.-]+)", path[1])]
        return at[2] - at[1], text_of(drawn)

    learned, words = heights(9.0, 20)
    assert learned > 200 and "untouched 9.000 ▴" in words  # of the 300 pixels that the axes have
    squeezed, words = heights(2.5, 0)  # its best step is shown
    assert squeezed < learned and "▴" not in words


def test_the_best_arm_is_not_the_reference_with_more_data(content: ReportContent) -> None:
    everything = arm("all_data", "All adaptation data", 2.2, 0.56)
    best = page.best_arm([*content.arms, everything])
    assert best is not None and best.name == "albat"
    assert page.best_arm([everything]) == everything
    assert page.best_arm([]) is None


def test_enrichment_is_share_of_weight_over_share_of_corpus(content: ReportContent) -> None:
    shares = {share.source: share for _, share in page.source_shares(content.selection)}
    assert shares["CDC"].enrichment == pytest.approx(0.026 / (270 / 42_419))
    many = [selection_figures.SourceShare(str(i), 0.01, 0.02, 2.0) for i in range(50)]
    drawn = page.charted(many)
    assert len(drawn) < 20 and drawn[-1].source.endswith("other sources")
    assert sum(s.weight for s in drawn) == pytest.approx(1.0)
    assert drawn[-1].enrichment == pytest.approx(2.0)


def test_of_many_sources_the_largest_are_listed_and_the_rest_together(
    content: ReportContent,
) -> None:
    many = tuple(
        SourceCount(source=f"s{n}", corpus=3, candidates=2, selected=1, weight=1 / 5000)
        for n in range(5000)
    )
    selection = content.selection.model_copy(update={"sources": many})
    html = page.render(content.model_copy(update={"selection": selection}))
    rows = rows_of(html, "Sources")
    assert len(rows) == 200
    rest = 5000 - 199
    said = f"{rest:,} other sources {3 * rest:,} {2 * rest:,} {rest:,} 96% 96% ×1.0"
    assert rows[-1].split() == said.split()
    assert len(html) < len(page.render(content)) + 200_000


def test_long_text_is_folded_and_the_longest_cut() -> None:
    assert page.passage("short") == page.Passage("short", "", 0)
    text = "word " * 300
    folded = page.passage(text)
    assert folded.text == text and folded.left_out == 0
    assert len(folded.excerpt) < 430 and folded.excerpt.endswith("word …")
    assert page.passage("x" * 20_000).left_out == 8000


def test_numbers_in_words() -> None:
    nan, around_zero = float("nan"), Interval(value=0, low=-0.1, high=0.1)
    made = {
        wording.fixed: {-0.0001: "0.000", -1234.5: "−1,234.500", nan: "–"},
        wording.signed: {0.24: "+0.240", -0.24: "−0.240", 0.0001: "0.000", None: "–"},
        wording.rounded: {
            12.4286: "12.4",
            12.02: "12.0",
            999.7: "1,000",
            500.2: "500",
            1234.6: "1,235",
            3.2e9: "3.2e9",
            -0.5: "−0.500",
        },
        wording.percent: {0.62: "62%", 0.9987: "99.8%", 0.0031: "0.31%", 1e-9: "< 0.01%"},
        wording.times: {9.42: "×9.4", 0.001: "< ×0.01", 130.4: "×130", None: "–"},
        wording.duration: {0.42: "0.4 s", 59.9: "1 min 00 s", 3725: "1 h 02 min", nan: "–"},
    }
    for say, expected in made.items():
        for value, words in expected.items():
            assert say(value) == words, (say.__name__, value)
    assert wording.between(around_zero, 1) == "−0.1 to 0.1"


@pytest.mark.parametrize(
    ("values", "significant", "digits"),
    [
        ([2.5, 3.5], 4, 3),
        ([0.0834, 0.0829], 4, 5),
        ([0.3], 4, 4),
        ([1234.0], 4, 3),
        ([0.0004, float("nan"), 0.0], 3, 6),
        ([], 4, 3),
        ([1e-20], 3, 9),
    ],
)
def test_numbers_get_the_digits_that_their_size_needs(
    values: list[float], significant: int, digits: int
) -> None:
    assert wording.decimals(values, significant) == digits


def test_small_losses_in_another_unit_are_told_with_enough_digits(content: ReportContent) -> None:
    small = tuple(
        a.model_copy(
            update={
                "loss": around(0.08 + 0.001 * n, 0.002),
                "gain": None if a.gain is None else around(0.00031, 0.00002),
                "perplexity": None,
            }
        )
        for n, a in enumerate(content.arms)
    )
    unit = "squared error per latent value"
    headline = gathering.headline(small, unit)
    assert headline.startswith("ALBAT reaches 0.08300 (squared error per latent value) on the")
    assert "0.00031 lower than with adaptation data only (95% interval 0.00029 to" in headline
    assert gathering.headline(content.arms, NATS) == content.headline
    html = page.render(sample(arms=small, unit=unit, headline=headline))
    row = rows_of(html, "Arms")[3]
    assert "0.08300 0.08100 to 0.08500 +0.00031 0.00029 to 0.00033" in row
    words = " ".join(Elements(html).words)
    assert "Perplexity" not in words and "nats" not in words
    assert "Squared error per latent value" in words  # explained at the end
    assert f"held-out loss, {unit}" in words and "+0.00031" in charts_of(html)[0]


def test_samples_of_texts_are_shown_as_texts(content: ReportContent) -> None:
    cells = tuple((Sample(text=f"{SCRIPT} by {a.label}"),) for a in content.arms)
    grid = SampleGrid(
        labels=tuple(a.label for a in content.arms),
        rows=tuple(SampleRow(prompt=f"prompt {n}", cells=cells) for n in range(10)),
        prompts=12,
        per_prompt=3,
    )
    html = page.render(sample(samples=grid))
    assert SCRIPT not in html and html.count("by Adaptation only") == 10
    words = " ".join(" ".join(Elements(html).words).split())
    assert "2 more prompts" in words and "Samples of 2 more prompts are in the run" in words
    assert "Of each prompt 3 were made; the first 1 are shown." in words
    assert 'id="samples"' not in page.render(content)


def test_noise_levels_that_do_not_suffice_are_called_that(content: ReportContent) -> None:
    def told(noise: NoiseLevels) -> str:
        chosen = content.selection.model_copy(update={"noise": noise})
        return " ".join(" ".join(Elements(page.render(sample(selection=chosen))).words).split())

    tried = tuple(RankAgreement(levels=4 * 2**n, agreement=0.8 + 0.05 * n) for n in range(3))
    assert "So many are enough" in told(NoiseLevels(levels=16, asked=0.9, tried=tried))
    assert "Even so many are not enough" in told(NoiseLevels(levels=16, asked=0.95, tried=tried))
    assert "same 7 noise levels, as configured." in told(NoiseLevels(levels=7))


def test_labels_are_spread_without_changing_their_order() -> None:
    placed = drawing.spread([5.0, 4.0, 90.0, 99.0], 18, 0, 100)
    assert placed[1] < placed[0] < placed[2] < placed[3]
    assert min(b - a for a, b in pairwise(sorted(placed))) >= 18 - 1e-9
    assert min(placed) >= 0 and max(placed) <= 100
    assert drawing.spread([50.0, 52.0], 18, 0, 100) == pytest.approx([42.0, 60.0])
    assert drawing.spread([30.0, 70.0], 18, 0, 100) == [30.0, 70.0]
    crowded = drawing.spread([50.0] * 11, 18, 0, 100)
    assert sorted(crowded) == pytest.approx([10.0 * i for i in range(11)])
    assert drawing.two_lines("Adaptation + random rows", 14) == ["Adaptation +", "random rows"]
    assert drawing.two_lines("x" * 60, 14) == ["x" * 14, "x" * 13 + "…"]
