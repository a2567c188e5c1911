"""The adaptation set's split: by document, nested, and stable as documents are added."""

import hashlib
from collections import Counter
from itertools import chain, pairwise

import pytest

from albat_core.errors import InputError
from albat_core.records.examples import Example
from albat_core.records.splits import (
    ROLES,
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    read_role,
    role_digest,
)
from albat_core.stages.split import SplitConfig, assign_roles, carried_roles, split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from tests.conftest import Cut
from tests.toys import topic_rows

NAMES = [f"document {n}" for n in range(100)]


def named(roles: dict[str, str], role: str) -> set[str]:
    return {name for name, given in roles.items() if given == role}


@pytest.mark.parametrize(
    ("count", "config", "expected"),
    [
        # tests are rounded up, validation is one in `folds` of what is used, rounded down
        (100, SplitConfig(), {TEST: 20, VALIDATION: 16, TRAIN: 64}),
        (101, SplitConfig(), {TEST: 21, VALIDATION: 16, TRAIN: 64}),
        (100, SplitConfig(test=0, folds=3), {VALIDATION: 33, TRAIN: 67}),
        (100, SplitConfig(use=0.1), {TEST: 20, VALIDATION: 1, TRAIN: 7, UNUSED: 72}),
        (7, SplitConfig(test=0.01), {TEST: 1, VALIDATION: 1, TRAIN: 5}),
        (2, SplitConfig(test=0, folds=2), {VALIDATION: 1, TRAIN: 1}),
    ],
)
def test_each_role_has_its_share(count: int, config: SplitConfig, expected: dict[str, int]) -> None:
    names = [f"document {n}" for n in range(count)]
    assert Counter(assign_roles(names, config, seed=0).values()) == expected


def test_rows_of_a_document_count_once_and_in_any_order() -> None:
    config = SplitConfig()
    assert assign_roles(NAMES * 3, config, 0) == assign_roles(NAMES[::-1], config, 0)


def test_the_seed_decides_who_goes_where() -> None:
    config = SplitConfig()
    assert assign_roles(NAMES, config, 0) == assign_roles(NAMES, config, 0)
    tests = [named(assign_roles(NAMES, config, seed), TEST) for seed in range(200)]
    often = Counter(name for chosen in tests for name in chosen)
    # binomial(200, 0.2): mean 40, deviation 5.7; five deviations for each of 100 names
    assert set(often) == set(NAMES)
    assert 40 - 28 <= min(often.values()) <= max(often.values()) <= 40 + 28


def test_a_smaller_use_is_nested_in_a_larger_one() -> None:
    shares = [assign_roles(NAMES, SplitConfig(use=use / 80), 0) for use in range(5, 81)]
    for smaller, larger in pairwise(shares):
        assert named(smaller, TEST) == named(larger, TEST)
        assert named(smaller, UNUSED) > named(larger, UNUSED)
        for role in (TRAIN, VALIDATION):
            assert named(smaller, role) <= named(larger, role)


def test_a_document_that_is_added_moves_at_most_one_between_training_and_test() -> None:
    before = assign_roles(NAMES, SplitConfig(), 0)
    for n in range(20):
        after = assign_roles([*NAMES, f"new {n}"], SplitConfig(), 0)
        assert len(named(before, TEST) ^ (named(after, TEST) - {f"new {n}"})) <= 1


@pytest.mark.parametrize("use", [1.0, 0.5])
def test_documents_that_are_known_keep_their_roles(use: float) -> None:
    config = SplitConfig(folds=4, use=use)
    before = assign_roles(NAMES[:50], config, 0)
    held_out = {name: role for name, role in before.items() if role in (TEST, UNUSED)}
    for fold in range(4):
        after = assign_roles(NAMES[10:], config, 0, fold, before)
        kept = held_out if fold else before
        assert {name: after[name] for name in NAMES[10:50] if name in kept} == {
            name: kept[name] for name in NAMES[10:50] if name in kept
        }
        counts = Counter(after.values())
        assert abs(counts[TEST] - 18) <= 1
        assert abs(counts[TRAIN] + counts[VALIDATION] - use * 72) <= 2


@pytest.mark.parametrize("added", [0, 2])
def test_where_those_that_validated_are_gone_another_document_does(added: int) -> None:
    config = SplitConfig()
    before = assign_roles(NAMES[:16], config, 0)
    left = [name for name in NAMES[:16] if before[name] != VALIDATION]
    after = assign_roles([*left, *NAMES[70 : 70 + added]], config, 0, 0, before)
    (validating,) = named(after, VALIDATION)
    assert (validating in left) == (not added)
    assert named(after, TEST) >= named(before, TEST)
    again = assign_roles([*left, *NAMES[70 : 70 + added]], config, 0, 0, after)
    assert again == after


def test_what_came_in_several_steps_is_held_out_in_all_folds_alike() -> None:
    config = SplitConfig(folds=4)
    known = assign_roles(NAMES[:50], config, 0)
    known = assign_roles(NAMES[:70], config, 0, 0, known)
    folds = [assign_roles(NAMES, config, 0, fold, known) for fold in range(4)]
    for roles in folds:
        assert named(roles, TEST) == named(folds[0], TEST)
    for name in NAMES:
        times = [roles[name] for roles in folds[1:]].count(VALIDATION)
        assert times <= (0 if name in named(folds[0], TEST) else 1)


@pytest.mark.parametrize(
    ("count", "config"),
    [
        (100, SplitConfig()),
        (37, SplitConfig(folds=4)),
        (60, SplitConfig(use=0.6, folds=3)),
        (2, SplitConfig(test=0, folds=2)),
    ],
)
def test_over_the_folds_each_document_that_is_used_validates_once(
    count: int, config: SplitConfig
) -> None:
    names = [f"document {n}" for n in range(count)]
    folds = [assign_roles(names, config, 3, fold) for fold in range(config.folds)]
    used = named(folds[0], TRAIN) | named(folds[0], VALIDATION)
    validated = Counter(chain.from_iterable(named(roles, VALIDATION) for roles in folds))
    assert validated == dict.fromkeys(used, 1)
    for roles in folds:
        assert named(roles, TRAIN) == used - named(roles, VALIDATION)
        assert named(roles, TEST) == named(folds[0], TEST)
        assert named(roles, UNUSED) == named(folds[0], UNUSED)
    sizes = [len(named(roles, VALIDATION)) for roles in folds]
    assert max(sizes) - min(sizes) <= 1


def test_the_first_fold_is_the_split_of_a_run_without_folds() -> None:
    # the reference: in the order of a hash, 20 of 100 test and every fifth of the rest validates
    digests = {n: hashlib.blake2b(f"7/{n}".encode(), digest_size=8).digest() for n in NAMES}
    ranked = sorted(NAMES, key=digests.__getitem__)
    roles = assign_roles(NAMES, SplitConfig(), 7)
    assert named(roles, TEST) == set(ranked[:20])
    assert named(roles, VALIDATION) == set(ranked[24::5])
    assert assign_roles(NAMES, SplitConfig(), 7, 0) == roles


def test_a_fold_s_smaller_use_is_nested_in_a_larger_one() -> None:
    smaller, larger = (assign_roles(NAMES, SplitConfig(use=use), 0, 3) for use in (0.3, 0.9))
    for role in (TRAIN, VALIDATION):
        assert named(smaller, role) < named(larger, role)


@pytest.mark.parametrize(
    ("count", "config"), [(5, SplitConfig()), (10, SplitConfig(use=0.5)), (1, SplitConfig())]
)
def test_too_few_documents_are_refused(count: int, config: SplitConfig) -> None:
    with pytest.raises(InputError, match="expected at least 5 documents") as caught:
        assign_roles([f"document {n}" for n in range(count)] * 50, config, 0)
    assert "document_column" in caught.value.remedy


def read_ids(store: ArtifactStore, ref: ArtifactRef) -> dict[str, list[str]]:
    return {role: [e.example_id for e in read_role(store, ref, role)] for role in ROLES}


def test_every_row_is_in_one_role_with_its_whole_document(cut: Cut, runtime: Runtime) -> None:
    rows = topic_rows("plants", 60, per_document=3)
    ref = split_adaptation([cut("own", rows)], [], SplitConfig(use=0.6), 0, runtime)
    store = ArtifactStore(runtime.root)
    ids = read_ids(store, ref)
    assert sorted(chain.from_iterable(ids.values())) == sorted(row["id"] for row in rows)
    order = [row["id"] for row in rows]
    assert all(sorted(found, key=order.index) == found for found in ids.values())
    of = {row["id"]: row["doc"] for row in rows}
    documents = {role: {of[name] for name in found} for role, found in ids.items()}
    assert sum(map(len, documents.values())) == 20  # none in two roles
    facts = store.manifest(ref).facts
    assert {r: (f["rows"], f["documents"]) for r, f in facts.items() if r in ROLES} == {
        role: (len(ids[role]), len(documents[role])) for role in ROLES
    }
    assert (len(documents[TEST]), len(documents[UNUSED])) == (4, 6)


def said(store: ArtifactStore, ref: ArtifactRef) -> dict[str, set[str]]:
    return {role: {str(e.text) for e in read_role(store, ref, role)} for role in ROLES}


@pytest.mark.parametrize("first", [True, False], ids=["listed first", "listed last"])
def test_copies_that_come_later_take_the_role_of_what_they_repeat(
    cut: Cut, runtime: Runtime, first: bool
) -> None:
    store, config = ArtifactStore(runtime.root), SplitConfig(folds=3)
    rows = topic_rows("plants", 40, seed=1)
    shards = cut("own", rows)
    before = said(store, earlier := split_adaptation([shards], [], config, 0, runtime))
    copies = [row | {"id": "n" + row["id"], "doc": "n" + row["doc"]} for row in rows]
    more = cut("more", copies + topic_rows("ships", 40, seed=9))
    both = [more, shards] if first else [shards, more]
    ref = split_adaptation(both, [], config, 0, runtime, previous=earlier)
    after = said(store, ref)
    for role in ROLES:
        assert after[role] >= before[role]
    assert store.manifest(ref).facts["new_rows"] == 40


def test_where_all_that_was_held_out_is_gone_the_way_on_is_told(cut: Cut, runtime: Runtime) -> None:
    store, config = ArtifactStore(runtime.root), SplitConfig(folds=3)
    rows = topic_rows("plants", 40, seed=1)
    earlier = split_adaptation([cut("own", rows)], [], config, 0, runtime)
    gone = {row.document for row in read_role(store, earlier, TEST)}
    left = cut("left", [row for row in rows if row["doc"] not in gone])
    with pytest.raises(InputError, match=r"all that the earlier .* are gone(.|\n)*`albat run`"):
        split_adaptation([left], [], config, 0, runtime, previous=earlier)
    more = cut("more", topic_rows("ships", 40, seed=9))
    ref = split_adaptation([left, more], [], config, 0, runtime, previous=earlier)
    assert {row.example_id[:5] for row in read_role(store, ref, TEST)} == {"ships"}


def rows_of(documents: str) -> list[Example]:
    """Examples by document, each named by a letter and the letters that its rows say: "a:xy"."""
    pairs = [each.split(":") for each in documents.split()]
    return [
        Example(f"{name}{n}", name, "s", text=text)
        for name, texts in pairs
        for n, text in enumerate(texts)
    ]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ("a:x b:yw c:z d:u", {"a": TEST, "b": TRAIN, "c": VALIDATION}),
        ("a:q b:ypw c:z", {"a": TEST, "b": TRAIN, "c": VALIDATION}),  # edited
        ("n:x a:yw b:z c:u", {"n": TEST, "a": TRAIN, "b": VALIDATION}),  # named by place, moved
        ("n:yp m:ypq", {"n": TRAIN}),  # at least half is of the other
        ("n:xy", {"n": TEST}),  # as much of both
        ("n:yxw", {"n": TRAIN}),
        ("n:bp", {}),  # what test and training have in common tells nothing
        ("a:b b:b", {"a": TEST, "b": TRAIN}),
    ],
)
def test_documents_have_the_roles_of_what_they_say(now: str, expected: dict[str, str]) -> None:
    roles = {"a": TEST, "b": TRAIN, "c": VALIDATION}
    earlier = [(roles[row.document], row) for row in rows_of("a:xb b:ywb c:z")]
    assert carried_roles(earlier, rows_of(now)) == expected


def test_held_out_documents_are_the_test_set(cut: Cut, runtime: Runtime) -> None:
    own, other = topic_rows("plants", 20), topic_rows("plants", 8, seed=7)
    ref = split_adaptation([cut("own", own)], [cut("other", other)], SplitConfig(), 0, runtime)
    ids = read_ids(ArtifactStore(runtime.root), ref)
    assert ids[TEST] == [row["id"] for row in other]
    assert sorted(ids[TRAIN] + ids[VALIDATION]) == sorted(row["id"] for row in own)


def test_a_document_in_both_sets_is_refused(cut: Cut, runtime: Runtime) -> None:
    own, other = topic_rows("plants", 20), topic_rows("plants", 8, seed=7)
    other[3]["doc"] = own[5]["doc"]
    with pytest.raises(InputError, match=f"{own[5]['doc']!r} and 0 more are in both sets"):
        split_adaptation([cut("own", own)], [cut("other", other)], SplitConfig(), 0, runtime)


def test_an_id_in_both_sets_is_refused(cut: Cut, runtime: Runtime) -> None:
    own, other = topic_rows("plants", 20), topic_rows("plants", 8, seed=7)
    other[3]["id"] = own[5]["id"]
    with pytest.raises(InputError, match=f"expected each id once, {own[5]['id']!r}"):
        split_adaptation([cut("own", own)], [cut("other", other)], SplitConfig(), 0, runtime)


def test_no_test_documents_at_all_are_refused(cut: Cut, runtime: Runtime) -> None:
    with pytest.raises(InputError, match="held-out documents"):
        split_adaptation(
            [cut("own", topic_rows("plants", 20))], [], SplitConfig(test=0), 0, runtime
        )


def test_a_role_s_digest_follows_its_rows_alone(cut: Cut, runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    shards = cut("own", topic_rows("plants", 40))
    whole, half = (
        split_adaptation([shards], [], SplitConfig(use=use), 0, runtime) for use in (1.0, 0.5)
    )
    assert role_digest(store, whole, TEST) == role_digest(store, half, TEST)
    assert role_digest(store, whole, TRAIN) != role_digest(store, half, TRAIN)


def test_an_earlier_split_is_kept_and_new_rows_are_counted(cut: Cut, runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    config = SplitConfig(folds=3)
    rows = topic_rows("plants", 40)
    first = split_adaptation([cut("first", rows)], [], config, 0, runtime)
    changed = [*rows[5:], *topic_rows("ships", 8)]
    changed[0] = changed[0] | {"text": "another text about plants"}
    shards = [cut("second", changed)]
    later = split_adaptation(shards, [], config, 0, runtime, 0, first)
    assert store.manifest(later).facts["new_rows"] == 9
    for role in ROLES:
        kept = set(read_ids(store, first)[role]) & {row["id"] for row in changed}
        assert kept <= set(read_ids(store, later)[role])
    assert later != split_adaptation(shards, [], config, 0, runtime)


def test_the_share_of_new_rows_is_of_the_adaptation_set_alone(cut: Cut, runtime: Runtime) -> None:
    store, config = ArtifactStore(runtime.root), SplitConfig(folds=3)
    heldout = [cut("heldout", topic_rows("ships", 60, seed=3))]
    first = split_adaptation([cut("first", topic_rows("plants", 40))], heldout, config, 0, runtime)
    others = [cut("second", topic_rows("ships", 40))]
    facts = store.manifest(split_adaptation(others, heldout, config, 0, runtime, 0, first)).facts
    assert facts["new_rows"] == facts["own_rows"] == 40


def test_all_of_the_data_has_what_an_earlier_selection_left_unused() -> None:
    known = assign_roles(NAMES[:60], SplitConfig(use=0.3), 0)
    assert named(known, UNUSED)
    whole = assign_roles(NAMES[:64], SplitConfig(use=1.0), 0, 0, known)
    assert not named(whole, UNUSED)
    for role in (TRAIN, VALIDATION, TEST):
        assert named(known, role) <= named(whole, role)
    # new documents come first where not all are wanted
    some = assign_roles(NAMES[:64], SplitConfig(use=0.35), 0, 0, known)
    assert named(some, TRAIN) | named(some, VALIDATION) > set(NAMES[60:64]) - named(some, TEST)


def test_folds_are_written_beside_the_run_s_own_split(cut: Cut, runtime: Runtime) -> None:
    store, config = ArtifactStore(runtime.root), SplitConfig(folds=3)
    rows = topic_rows("plants", 40)
    shards = cut("own", rows)
    own, *others = (split_adaptation([shards], [], config, 0, runtime, fold) for fold in range(3))
    assert own == split_adaptation([shards], [], config, 0, runtime)
    documents = {row["id"]: row["doc"] for row in rows}
    for fold, ref in enumerate((own, *others)):
        roles = assign_roles(list(documents.values()), config, 0, fold)
        for role, ids in read_ids(store, ref).items():
            assert ids == [name for name, document in documents.items() if roles[document] == role]
        assert role_digest(store, ref, TEST) == role_digest(store, own, TEST)
    assert len({own, *others}) == 3


def test_the_same_text_under_two_names_is_one_document(cut: Cut, runtime: Runtime) -> None:
    store, rows = ArtifactStore(runtime.root), topic_rows("plants", 40, per_document=1)
    again = [row | {"id": f"again-{n}", "doc": f"again-{n}"} for n, row in enumerate(rows[::2])]
    again[0]["text"] = again[0]["text"].upper().replace(" ", "  ")  # spelled otherwise
    ref = split_adaptation([cut("own", rows + again)], [], SplitConfig(folds=3), 0, runtime)
    facts = store.manifest(ref).facts
    assert facts["joined_documents"] == len(again)
    roles = {
        row.example_id: (role, row.document)
        for role in (TRAIN, VALIDATION, TEST, UNUSED)
        for row in read_role(store, ref, role)
    }
    assert len(roles) == len(rows) + len(again)
    for n, row in enumerate(rows[::2]):
        assert roles[f"again-{n}"] == roles[row["id"]]


def test_rows_that_repeat_held_out_ones_are_not_trained_on(cut: Cut, runtime: Runtime) -> None:
    store, rows = ArtifactStore(runtime.root), topic_rows("plants", 30, per_document=1)
    held = [row | {"id": f"held-{n}", "doc": f"held-{n}"} for n, row in enumerate(rows[:4])]
    held += topic_rows("ships", 6, seed=3)
    split = split_adaptation(
        [cut("own", rows)], [cut("heldout", held)], SplitConfig(folds=3), 0, runtime
    )
    assert store.manifest(split).facts["documents_held_out_too"] == 4
    unused = {row.example_id for row in read_role(store, split, UNUSED)}
    assert unused == {row["id"] for row in rows[:4]}
    assert {row.example_id for row in read_role(store, split, TEST)} == {r["id"] for r in held}
