"""The registry of adapters: entries, names, aliases, differences."""

from pathlib import Path

import pyarrow as pa
import pytest

from albat_core.errors import ArtifactError, ConfigError, TransientError
from albat_core.records.mixtures import (
    ADAPTATION,
    BACKBONE,
    RowChanges,
    WeightedRow,
    changed_rows,
    weighted_rows,
)
from albat_core.records.tables import write_table
from albat_core.report.content import Interval
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Entry, Registry, changed_settings, register_adapter
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

GAIN = Interval(value=0.2, low=0.1, high=0.3)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


def adapter(store: ArtifactStore, number: int) -> ArtifactRef:
    def build(folder: Path) -> Built:
        (folder / "weights").write_text(str(number))
        return Built()

    return store.produce("adapter", 1, {"number": number}, {}, build)


def entry(store: ArtifactStore, number: int, run: str = "cancer", **values: object) -> Entry:
    ref = adapter(store, number)
    given = {
        "run": run,
        "adapter": ref,
        "mixture": ref,
        "created": f"2026-01-{number:02d}",
        "alpha": 0.3,
        "adaptation_rows": 5,
        "backbone_rows": 7,
        "config": {"seed": number},
    }
    return Entry.model_validate(given | values)


def test_an_adapter_follows_the_run_s_newest(store: ArtifactStore) -> None:
    registry = Registry(store)
    first, second = (registry.register(entry(store, n)) for n in (1, 2))
    other = registry.register(entry(store, 3, run="other"))
    assert first.parent is None
    assert second.parent == first.adapter.key
    assert other.parent is None
    assert registry.entries("cancer") == [first, second]
    assert registry.entries() == [first, second, other]


def test_an_entry_that_is_listed_and_not_found_is_told(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Registry(store).register(entry(store, 1))
    Registry(store).promote("cancer")
    listed = storage.file_sizes

    def one_more(uri: str) -> dict[str, int]:
        return listed(uri) | {"gone.json": 1, "cancer@gone.json": 1}

    monkeypatch.setattr(storage, "file_sizes", one_more)
    with pytest.raises(TransientError, match="listed"):
        Registry(store).entries("cancer")
    with pytest.raises(TransientError, match="listed"):
        Registry(store).aliases()


def test_what_becomes_known_is_added_and_nothing_is_lost(store: ArtifactStore) -> None:
    registry = Registry(store)
    registry.register(entry(store, 1))
    before = registry.register(entry(store, 2))
    report = adapter(store, 9)
    known = registry.register(
        entry(store, 2, created="2026-02-01", report=report, loss=GAIN, gain=GAIN)
    )
    assert (known.created, known.parent) == (before.created, before.parent)
    assert known.gain == GAIN
    again = registry.register(entry(store, 2, created="2026-03-01"))
    assert again == known


def test_the_newest_is_what_a_run_came_to_last(store: ArtifactStore) -> None:
    registry = Registry(store)
    first = registry.register(entry(store, 1, created="2026-01-01"))
    registry.register(entry(store, 2, created="2026-01-02"))
    registry.register(entry(store, 1, created="2026-01-03"))
    newest = registry.find("cancer")
    assert (newest.adapter, newest.created) == (first.adapter, "2026-01-01")
    following = registry.register(entry(store, 3, created="2026-01-04"))
    assert following.parent == first.adapter.key


def test_the_newest_is_what_was_made_last_whatever_the_clock_says(store: ArtifactStore) -> None:
    registry = Registry(store)
    first = registry.register(entry(store, 1, created="2026-01-01T10:00:00.5+00:00"))
    second = registry.register(entry(store, 2, created="2026-01-01T09:30:00.5+00:00"))
    assert registry.find("cancer").adapter == second.adapter
    assert second.parent == first.adapter.key
    registry.register(entry(store, 1, created="2026-01-01T09:40:00.5+00:00"))
    assert registry.find("cancer").adapter == first.adapter
    again = registry.register(entry(store, 3, created="2026-01-01T10:00:01.5+00:00"))
    assert again.created == "2026-01-01T10:00:01.5+00:00"


def test_names_mean_one_adapter(store: ArtifactStore) -> None:
    registry = Registry(store)
    first, second = (registry.register(entry(store, n)) for n in (1, 2))
    assert registry.find("cancer") == second
    assert registry.find(f"cancer/{first.adapter.key[:6]}") == first
    assert registry.find(first.name) == first
    registry.promote(first.name)
    assert registry.find("cancer@production") == first
    for name in ("none", "cancer/zzz", "cancer@absent"):
        with pytest.raises(ArtifactError, match="found"):
            registry.find(name)


def test_an_alias_moves_and_belongs_to_its_run(store: ArtifactStore) -> None:
    registry = Registry(store)
    first, second = (registry.register(entry(store, n)) for n in (1, 2))
    registry.register(entry(store, 3, run="other"))
    registry.promote(first.name)
    registry.promote(second.name)
    registry.promote("other", "staging")
    assert registry.aliases() == {
        "cancer@production": second.adapter.key,
        "other@staging": adapter(store, 3).key,
    }


def test_a_lost_adapter_and_a_strange_alias_are_not_promoted(store: ArtifactStore) -> None:
    registry = Registry(store)
    gone = registry.register(entry(store, 1))
    with pytest.raises(ConfigError, match="alias"):
        registry.promote(gone.name, "a/b")
    (store.folder(gone.adapter) / "weights").unlink()
    with pytest.raises(ArtifactError):
        Registry(ArtifactStore(store.root)).promote(gone.name)
    assert registry.aliases() == {}


def test_an_entry_that_cannot_be_read_is_named_and_the_others_are_there(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry(store)
    sound = registry.register(entry(store, 1))
    folder = Path(store.root, "registry", "cancer")
    (folder / "broken.json").write_text("{}")
    (folder / "noise.json").write_bytes(b"\xff\x00")
    (folder / ".unfinished.json").write_text("{")
    assert registry.entries() == [sound]
    assert all(name in caplog.text for name in ("broken.json", "noise.json"))
    assert "unfinished" not in caplog.text
    registry.register(entry(store, 2))
    assert len(registry.entries("cancer")) == 2


@pytest.mark.parametrize("content", ['{"adapter": ""}', '{"adapter": "a"}', "{}", "", "[1]"])
def test_an_alias_that_cannot_be_read_means_nothing_and_is_named(
    store: ArtifactStore, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    registry = Registry(store)
    sound = registry.register(entry(store, 1))
    registry.promote(sound.name, "staging")
    Path(store.root, "registry", "cancer@production.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"cancer@production\.json"):
        registry.find("cancer@production")
    assert registry.aliases() == {"cancer@staging": sound.adapter.key}
    assert "cancer@production.json" in caplog.text
    assert registry.find("cancer@staging") == sound
    registry.promote(sound.name)
    assert registry.find("cancer@production") == sound


def test_the_registry_holds_no_secret(store: ArtifactStore, run_config: RunConfig) -> None:
    source = run_config.corpus[0].model_copy(update={"path": "http://user:5eCr3t@host/a.jsonl"})
    config = run_config.model_copy(update={"corpus": (source,)})
    ref = store.produce(
        "adapter",
        1,
        {},
        {},
        lambda _: Built(facts=dict.fromkeys(("alpha", "adaptation_rows", "backbone_rows"), 0)),
    )
    register_adapter("run", ref, ref, None, config, Runtime(root=store.root))
    assert "5eCr3t" not in next(Path(store.root, "registry", "run").glob("*.json")).read_text()


def mixture(store: ArtifactStore, own: list[str], others: list[str]) -> ArtifactRef:
    """A mixture of rows that say what they are called, of equal weights."""

    def build(folder: Path) -> Built:
        ids = own + others
        roles = [ADAPTATION] * len(own) + [BACKBONE] * len(others)
        said = dict.fromkeys(("example_id", "document", "source", "text"), ids)
        table = pa.table(said | {"role": roles, "weight": [1 / len(ids)] * len(ids)})
        (folder / "data").mkdir()
        write_table(table, folder / "data" / "train-00000-of-00001.parquet")
        return Built(rows=len(ids), facts={"alpha": len(others) / len(ids)})

    return store.produce("mixture", 1, {"own": own, "others": others}, {}, build)


def test_rows_of_a_mixture_have_the_objective_s_weights(store: ArtifactStore) -> None:
    rows = weighted_rows(store, mixture(store, ["t1"], ["c1", "c2", "c3"]))
    assert [(row.role, row.example_id) for row in rows] == [
        (ADAPTATION, "t1"),
        *((BACKBONE, f"c{n}") for n in (1, 2, 3)),
    ]
    assert [row.weight for row in rows] == pytest.approx([0.25] * 4)
    assert len({row.digest for row in rows}) == 4


def weighted(own: str, others: str) -> list[WeightedRow]:
    """Rows of two roles of equal weights, each with an id and a content: "a1 b2"."""
    rows = [(ADAPTATION, row) for row in own.split()] + [(BACKBONE, row) for row in others.split()]
    return [WeightedRow(role, row[1:], row[0], 1 / len(rows)) for role, row in rows]


def test_rows_that_entered_and_left() -> None:
    before = weighted("t1 u2", "c1 d2 e3")
    after = weighted("t1 u2 v3", "e3 f4")
    changes = changed_rows(before, after)
    assert changes[ADAPTATION] == RowChanges(entered=("v",), left=(), stayed=2)
    assert changes[BACKBONE] == RowChanges(entered=("f",), left=("c", "d"), stayed=1)


def test_rows_are_what_they_say_and_not_what_they_are_called() -> None:
    before, after = weighted("a1 b2 c3", "a1 a5"), weighted("a1 b4 d3", "x1 y5 z5")
    changes = changed_rows(before, after)
    assert changes[ADAPTATION] == RowChanges(entered=("b",), left=("b",), stayed=2)
    assert changes[BACKBONE] == RowChanges(entered=("z",), left=(), stayed=2)


def test_settings_that_changed() -> None:
    first = {"seed": 0, "mixture": {"rows": 5, "alpha": "auto"}, "corpus": [{"path": "a"}]}
    second = {"seed": 0, "mixture": {"rows": 6, "alpha": "auto"}, "corpus": [{"path": "b"}]}
    assert changed_settings(first, second) == {
        "mixture.rows": (5, 6),
        "corpus.0.path": ("a", "b"),
    }
    assert changed_settings(first, {"seed": 0})["mixture.rows"] == (5, None)


def test_two_spellings_of_a_path_are_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")

    def settings(path: object, template: str = "x") -> dict:
        source = {"path": path, "template": template}
        return {"backbone": {"path": "model"}, "corpus": [source], "adaptation": [source]}

    one = settings("data/a.jsonl")
    for path in (
        f"{tmp_path}/data/a.jsonl",
        "data/../data/./a.jsonl",
        f"file://{tmp_path}/data/a.jsonl",
        "link/a.jsonl",
        ["data/a.jsonl"],
    ):
        assert changed_settings(one, settings(path)) == {}, path
    assert set(changed_settings(one, settings("data/b.jsonl"))) == {
        "corpus.0.path",
        "adaptation.0.path",
    }
    assert set(changed_settings(one, settings("data/a.jsonl", "./x"))) == {
        "corpus.0.template",
        "adaptation.0.template",
    }
