"""Commands about finished adapters, on a registry with two of them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from albat_core.report.content import Interval
from albat_core.runs.registry import Registry
from albat_core.store.artifacts import ArtifactStore
from tests.core.test_registry import GAIN, entry, mixture
from tests.flows.conftest import Albat


@pytest.fixture
def names(tmp_path: Path) -> tuple[str, str]:
    """Two adapters of one run below ``tmp_path``; the first is evaluated."""
    store = ArtifactStore(str(tmp_path))
    registry = Registry(store)
    first = mixture(store, ["t1"], ["c1", "c2"])
    second = mixture(store, ["t1", "t2"], ["c2", "c3"])
    return (
        registry.register(entry(store, 1, mixture=first, loss=GAIN, gain=GAIN)).name,
        registry.register(entry(store, 2, mixture=second)).name,
    )


def test_adapters_are_listed_with_their_results_and_aliases(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    promoted = albat("promote", names[0], "--root", tmp_path)
    assert promoted.code == 0
    assert f"cancer@production is now {names[0]}" in promoted.out
    lines = albat("list", "--root", tmp_path).out.splitlines()
    [first] = [line for line in lines if names[0] in line]
    [second] = [line for line in lines if names[1] in line]
    assert "0.2000  +0.2000 [+0.1000, +0.3000]" in first
    assert first.rstrip().endswith("@production")
    assert "not evaluated" in second
    assert "production" not in second
    assert lines.index(first) < lines.index(second)


def test_the_list_can_be_read_at_80_columns(
    albat: Albat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.console.width", 80)
    store = ArtifactStore(str(tmp_path))
    small = Interval(value=0.00031, low=0.00029, high=0.00033)
    loss = Interval(value=0.08342, low=0.081, high=0.085)
    run = "the-second-name-of-a-dog"
    made = Registry(store).register(entry(store, 1, run=run, loss=loss, gain=small))
    Registry(store).promote(made.name)
    out = albat("list", "--root", tmp_path).out
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80
    for said in ("0.08342", "+0.00031 [+0.00029, +0.00033]", "0.30", "2026-01-01"):
        assert said in out, said
    heading, *lines = out.splitlines()
    for name, end, whole in (("adapter", "made", made.name), ("alias", None, "@production")):
        start, stop = heading.index(name), heading.index(end) if end else None
        assert "".join(line[start:stop].strip() for line in lines) == whole


def test_a_difference_names_settings_and_rows(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    out = albat("diff", *names, "--root", tmp_path).out
    [seed] = [line for line in out.splitlines() if line.startswith("seed")]
    assert seed.split() == ["seed", "1", "2"]
    assert "backbone rows: 1 in, 1 out, 1 stay" in out
    assert "adaptation rows: 1 in, 0 out, 1 stay" in out
    assert "+ c3" in out
    assert "- c1" in out


def test_an_adapter_is_shown_by_its_name(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    out = albat("show", names[0], "--root", tmp_path).out
    key = Registry(ArtifactStore(str(tmp_path))).find(names[0]).adapter.key
    assert f"adapter/{key}" in out


def test_a_name_that_is_none_is_refused(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    for command in (("promote", "cancer/zzz"), ("diff", "cancer", "other"), ("show", "cancer/zz")):
        outcome = albat(*command, "--root", tmp_path)
        assert outcome.code == 1
        assert "expected one" in outcome.err


def test_a_beginning_that_several_adapters_have_is_refused(albat: Albat, tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    registry = Registry(store)
    # one more than there are digits that a key can begin with
    made = [registry.register(entry(store, number)).name for number in range(1, 18)]
    [(start, _)] = Counter(name[: len("cancer/0")] for name in made).most_common(1)
    for command in (("promote", start), ("diff", start, made[0]), ("show", start)):
        outcome = albat(*command, "--root", tmp_path)
        assert outcome.code == 1
        meant = [name for name in made if name.startswith(start)]
        assert f"expected one adapter named {start!r}, found " in outcome.err
        assert all(name in outcome.err for name in meant)


def test_no_adapters_yet(albat: Albat, tmp_path: Path) -> None:
    outcome = albat("list", "--root", tmp_path)
    assert outcome.code == 0
    assert "albat run" in outcome.out


def test_paths_that_look_like_markup_are_printed_as_they_are(
    albat: Albat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "[" / "x] [red]"
    for command in (("list", "--root", odd), ("show", "--root", odd), ("prune", "--root", odd)):
        outcome = albat(*command)
        assert outcome.code == 0
        assert str(odd) in outcome.out
    odd.mkdir(parents=True)
    assert str(odd / "a.yaml") in albat("init", odd / "a.yaml").out


def test_one_broken_entry_does_not_hide_the_others(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "registry" / "cancer" / "broken.json").write_text("{")
    (tmp_path / "registry" / "cancer" / "deep.json").write_text("[" * 100_000)
    whole = next((tmp_path / "registry" / "cancer").glob(f"{names[0].partition('/')[2]}*.json"))
    (tmp_path / "registry" / "another").mkdir()
    (tmp_path / "registry" / "another" / whole.name).write_bytes(whole.read_bytes())
    outside = json.loads(whole.read_bytes()) | {"adapter": {"stage": "adapter", "key": "../../x"}}
    outside.pop("sha256")
    (tmp_path / "registry" / "cancer" / "outside.json").write_text(json.dumps(outside))
    (tmp_path / "registry" / "cancer@production.json").write_text('{"adapter": ""}')
    outcome = albat("list", "--root", tmp_path)
    assert outcome.code == 0
    assert all(outcome.out.count(name) == 1 for name in names)
    assert "production" not in outcome.out
    assert Registry(ArtifactStore(str(tmp_path))).entries("another") == []
    _, broken = Registry(ArtifactStore(str(tmp_path))).read_entries()
    said = [error.where.rpartition("/registry/")[2] for error in broken]
    there = ["another/" + whole.name, *(f"cancer/{n}.json" for n in ("broken", "deep", "outside"))]
    assert sorted(said) == there


def test_pruning_says_what_would_go_and_removes_it_when_told(
    albat: Albat, names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    store = ArtifactStore(str(tmp_path))
    lone = mixture(store, ["t9"], ["c9"])
    command = ("prune", "--root", tmp_path)
    assert "nothing to remove" in albat(*command).out  # it is young
    said = albat(*command, "--older", 0).out
    assert str(lone) in said
    assert "1 would go" in said
    assert store.find(lone)
    assert "removed 1" in albat(*command, "--older", 0, "--yes").out
    assert store.find(lone) is None
    assert all(name in albat("list", "--root", tmp_path).out for name in names)


def test_what_would_be_pushed_is_written(
    albat: Albat, names: tuple[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    asked = ("push", names[0], "owner/name", "--dry-run", folder, "--root", tmp_path)
    said = albat(*asked)
    assert said.code == 0
    assert "nothing is uploaded" in said.out
    assert {path.name for path in folder.iterdir()} == {"weights", "README.md"}
    assert "alpha = 0.300" in (folder / "README.md").read_text()
    again = albat(*asked)
    assert again.code == 1
    assert "expected an empty folder" in again.err
