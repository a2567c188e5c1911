"""The whole chain on toys: what is computed, what is found again, and what others can read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role
from albat_core.records.vectors import load_queries
from albat_core.runs.chain import Chain
from albat_core.runs.goals import reach
from flows.albat import from_file
from tests.end_to_end.conftest import Albat, Run, Start
from tests.toys import rewrite, topic_rows, write_jsonl, write_run
from tests.waiting import wait_until

pytestmark = pytest.mark.end_to_end

ARMS = ("Adaptation data only", "With random corpus rows", "ALBAT")


def changed(run: Run, section: str, **values: Any) -> Path:
    """Change values of one section of a run's configuration."""
    written = yaml.safe_load(run.path.read_text()).get(section) or {}
    return rewrite(run.path, {section: written | values})


def again(start: Start, before: Run) -> Run:
    """Run again; check that nothing that was finished was touched, and that the account is true.

    What the stages say they computed must be what is new on disk.
    """
    files, manifests = before.files(), before.manifests()
    after = start(before.path)
    left = {name: after.files().get(name) for name in files}
    assert left == files
    new = {ref: m for ref, m in after.manifests().items() if ref not in manifests}
    made = {str(ref) for stage in after.result.stages for ref in stage.refs if not ref.reused}
    assert made == {ref for ref in new if not ref.startswith("ids/")}  # a note beside the shards
    attempts = {m.attempt for m in manifests.values()}
    assert not attempts & {m.attempt for m in new.values()}
    return after


def flags(run: Run, label: str) -> list[bool]:
    """Return which artifacts of a stage were found finished."""
    return [ref.reused for ref in run.refs(label)]


def test_a_run_is_started_by_the_path_of_its_file(prefect_server: str, tmp_path: Path) -> None:
    path = write_run(tmp_path)
    result = from_file(str(path), up_to="embed")
    assert result.artifact.stage == "queries"
    path.write_text("sede: 1")
    state = from_file(str(path), return_state=True)
    assert state.is_failed()
    assert "unknown key 'sede'; did you mean 'seed'?" in str(state.message)


def test_first_run_computes_every_stage(first: Run) -> None:
    surrogate, own = (
        first.refs("fine-tune: surrogate"),
        first.refs(f"fine-tune: {ARMS[0]}, best step"),
    )
    assert surrogate == own  # the same mixture and the same training: trained once
    reused = {f"{what}: {ARMS[0]}, best step" for what in ("write mixture", "fine-tune")}
    assert first.labels - first.computed == reused
    assert first.labels >= {f"{what}: {arm}" for what in ("fine-tune", "evaluate") for arm in ARMS}
    for ref in first.store.all_refs():
        assert first.store.changed_files(ref) == []
    places = dict(first.result.places)
    assert places.pop("name") == f"{first.config.name}/{first.refs('fine-tune: ALBAT')[0].key[:8]}"
    for name, place in places.items():
        assert Path(place).exists(), name
    assert set(places) == {"report", "adapter", "mixture"}


def test_second_run_computes_nothing(start: Start, first: Run) -> None:
    second = again(start, first)
    assert second.computed == set()
    assert second.labels == first.labels
    assert second.result.artifact == first.result.artifact
    assert second.result.places == first.result.places
    assert second.manifests() == first.manifests()


def test_the_chain_without_prefect_finds_the_same_artifacts(first: Run) -> None:
    chain = Chain(first.config)
    assert chain.report == first.result.artifact
    assert all(stage.reused for stage in chain.stages)
    assert [stage.label for stage in chain.stages] == [s.label for s in first.result.stages]


def test_a_command_finds_a_finished_run_without_a_server(
    prefect_server: str, copied: Run, tmp_path: Path
) -> None:
    del prefect_server  # what is named in this process is not in the command's
    reach("albat", Chain(copied.config))
    home = tmp_path / "home"
    own = {"PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | own
    for command in ("run", "mix"):
        said = subprocess.run(
            [sys.executable, "-m", "flows.cli", command, str(copied.path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "✓" not in said
        assert "= write mixture: ALBAT " in said
        assert ("in nats per token" in said) == (command == "run")
        assert not (home / "prefect.db").exists()


def test_another_learning_rate_trains_the_arms_alone(start: Start, copied: Run) -> None:
    changed(copied, "finetune", learning_rate=5e-3)
    after = again(start, copied)
    trained = {f"{what}: {arm}" for what in ("fine-tune", "evaluate") for arm in ARMS}
    trained |= {f"fine-tune: {arm}, best step" for arm in ARMS}
    assert after.computed == trained | {"report"}


def test_another_alpha_reuses_scores_and_selection(start: Start, copied: Run) -> None:
    changed(copied, "mixture", alpha=0.25)
    after = again(start, copied)
    mixed = {
        f"{what}: {arm}"
        for what in ("write mixture", "fine-tune", "evaluate")
        for arm in ARMS
        if arm != "Adaptation data only"
    }
    mixed |= {f"{step}, best step" for step in mixed if not step.startswith("evaluate")}
    assert after.computed == mixed | {"report"}
    assert after.manifest("write mixture: ALBAT").facts["alpha"] == 0.25


def test_other_names_and_places_compute_only_the_report(start: Start, copied: Run) -> None:
    changed(copied, "runtime", workers=1, checkpoint_seconds=0.5)
    after = again(start, copied)  # a copy in another folder, under another name
    assert after.computed == {"report"}
    assert Path(after.result.places["report"]).parent == copied.path.parent / "runs" / "copy"


def test_added_adaptation_rows_are_embedded_alone(start: Start, copied: Run) -> None:
    write_jsonl(
        copied.path.parent / "adaptation.jsonl",
        topic_rows("plants", 40, seed=1) + topic_rows("plants", 12, seed=2),
    )
    after = again(start, copied)
    assert after.labels - after.computed == {
        "cut corpus",
        "embed corpus",
        "index",
        "draw random rows",
        f"write mixture: {ARMS[0]}, best step",
        f"fine-tune: {ARMS[0]}, best step",  # the surrogate again, see the first run
    }
    (queries,) = after.refs("embed adaptation set")
    (old,) = copied.refs("embed adaptation set")
    ids, vectors = load_queries(after.store, queries)
    old_ids, old_vectors = load_queries(copied.store, old)
    fresh = set(ids) - set(old_ids)
    facts = after.manifest("embed adaptation set").facts
    assert facts["embedded_rows"] == len(fresh)
    assert facts["reused_rows"] == len(ids) - len(fresh)
    assert 0 < len(fresh) < len(ids) / 2
    place = {name: row for row, name in enumerate(old_ids)}
    for name, vector in zip(ids, vectors, strict=True):
        if name in place:
            np.testing.assert_array_equal(vector, old_vectors[place[name]])
    roles = [
        {e.example_id for e in read_role(after.store, after.refs("split by document")[0], role)}
        for role in (TRAIN, TEST)
    ]
    assert set(ids) == roles[0]
    assert not roles[0] & roles[1]


def test_an_added_corpus_file_is_embedded_alone(start: Start, copied: Run) -> None:
    write_jsonl(copied.path.parent / "corpus" / "stars.jsonl", topic_rows("stars", 30))
    after = again(start, copied)
    assert flags(after, "cut corpus") == [True, True, False]  # plants, ships, stars
    assert flags(after, "embed corpus") == [True, True, False]
    assert after.manifest("index").rows == 150
    assert "fine-tune: surrogate" not in after.computed
    assert {"index", "retrieve", "score", "select"} <= after.computed


def test_a_changed_row_computes_its_file_alone(start: Start, copied: Run) -> None:
    rows = topic_rows("ships", 60)
    rows[7]["text"] += " Anchor."
    write_jsonl(copied.path.parent / "corpus" / "ships.jsonl", rows)
    after = again(start, copied)
    assert flags(after, "cut corpus") == [True, False]
    assert flags(after, "embed corpus") == [True, False]
    assert {"index", "retrieve"} <= after.computed
    assert not {"cut adaptation set", "split by document", "fine-tune: surrogate"} & after.computed


def test_a_lost_file_is_made_again(start: Start, copied: Run) -> None:
    (ref,) = copied.refs("score")
    (copied.store.folder(ref) / "scores.parquet").unlink()
    (manifest,) = (Path(copied.config.runtime.root) / ref.stage / ref.key).glob("manifest.json")
    before = json.loads(manifest.read_text())
    after = start(copied.path)
    assert after.computed == {"score", "report"}  # the report: it is another run's name
    made = json.loads(manifest.read_text())
    assert made["attempt"] != before["attempt"]
    assert made["files"] == before["files"]  # byte for byte what was lost


def task_runs(flow_run_name: str, names: set[str]) -> list[dict[str, str]]:
    """Return names and state names of the tasks of each flow run of that name, oldest first.

    The server notes tasks and their states a moment after they end: waits for those of ``names``.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    named = FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name]))
    runs: list[dict[str, str]] = []

    def noted() -> bool:
        with get_client(sync_client=True) as client:
            flow_runs = client.read_flow_runs(
                flow_run_filter=named, sort=FlowRunSort.START_TIME_ASC
            )
            tasks = client.read_task_runs(flow_run_filter=named, limit=200)
        found: dict[Any, dict[str, str]] = {run.id: {} for run in flow_runs}
        for task in tasks:
            found[task.flow_run_id][task.name] = task.state_name or ""
        runs[:] = found.values()
        assert all(run.state_name == "Completed" for run in flow_runs)
        ended = all(task.state_name in ("Completed", "Reused") for task in tasks)
        return ended and all(set(run) >= names for run in runs)

    wait_until(noted)
    return runs


def test_prefect_shows_what_was_reused(start: Start, copied: Run) -> None:
    rewrite(copied.path, {"name": "shown"})
    start(copied.path)
    start(copied.path)
    # they make no artifact
    always = {"find files", "list parts", "export", "register the adapter"}
    stages = {
        "cut plants",
        "cut ships",
        "cut adaptation",
        "embed shard 1/2 of plants",
        "embed shard 2/2 of ships",
        "index the corpus",
        "split by document",
        "embed adaptation examples",
        "embed held-out rows",
        "retrieve candidates",
        "leave out held-out rows",
        "fine-tune: surrogate",
        "score candidates",
        "select and weigh",
        "draw random candidates",
        "take all random candidates",
        "evaluate: Backbone untouched",
        *(f"{what}: {arm}" for what in ("write mixture", "fine-tune", "evaluate") for arm in ARMS),
        *(f"{what}: {arm}, best step" for what in ("write mixture", "fine-tune") for arm in ARMS),
        "write the report",
    }
    first, second = task_runs("shown", stages | always)
    assert set(first) == set(second) == stages | always
    computed = {name for name, state in first.items() if state != "Reused"}
    assert computed == {"write the report", *always}  # the run has a new name
    assert {name for name, state in second.items() if state != "Reused"} == always


OUTSIDER = """
import json, sys
import pyarrow.parquet as pq
import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

mixture, adapter, backbone, heldout = sys.argv[1:]
rows = load_dataset(mixture)["train"]
tokenizer = AutoTokenizer.from_pretrained(backbone)
model = AutoModelForCausalLM.from_pretrained(backbone).eval()

def heldout_loss(model):
    total = units = 0
    for row in pq.read_table(heldout).to_pylist():
        ids = torch.tensor([tokenizer(row["text"])["input_ids"] + [tokenizer.eos_token_id]])
        with torch.no_grad():
            mean = model(input_ids=ids, labels=ids).loss.item()
        total += mean * (ids.shape[1] - 1)
        units += ids.shape[1] - 1
    return total / units

untouched = heldout_loss(model)
adapted = heldout_loss(PeftModel.from_pretrained(model, adapter).eval())
assert not {"albat_core", "flows", "tasks"} & set(sys.modules)
weight = {role: 0.0 for role in set(rows["role"])}
for role, value in zip(rows["role"], rows["weight"]):
    weight[role] += value
found = {"untouched": untouched, "adapted": adapted, "weight": weight, "rows": len(rows),
         "columns": rows.column_names, "texts": list(rows["text"])}
json.dump(found, sys.stdout)
"""


def test_others_read_mixture_and_adapter_and_find_our_loss(first: Run, tmp_path: Path) -> None:
    (adaptation,) = first.refs("split by document")
    heldout = first.store.folder(adaptation) / "test.parquet"
    places = first.result.places
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            OUTSIDER,
            places["mixture"],
            places["adapter"],
            first.config.backbone.path,
            str(heldout),
        ],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    ours = {arm: first.manifest(f"evaluate: {arm}").facts["loss"] for arm in ("ALBAT", *ARMS[:1])}
    untouched = first.manifest("evaluate: Backbone untouched").facts["loss"]
    assert seen["adapted"] == pytest.approx(ours["ALBAT"], rel=1e-5)
    assert seen["untouched"] == pytest.approx(untouched, rel=1e-5)
    assert abs(seen["adapted"] - seen["untouched"]) > 0.01
    alpha = first.config.mixture.alpha
    assert seen["weight"] == pytest.approx({"adaptation": 1 - alpha, "backbone": alpha})
    assert seen["rows"] == first.manifest("write mixture: ALBAT").rows
    assert {"text", "weight", "role", "score", "example_id"} <= set(seen["columns"])
    for role in (TRAIN, VALIDATION):
        assert {e.text for e in read_role(first.store, adaptation, role)} <= set(seen["texts"])


def test_a_stage_that_fails_ends_the_command_with_its_error(
    prefect_server: str, tmp_path: Path
) -> None:
    training = {"batch_size": 4, "learning_rate": 1e30}
    path = write_run(tmp_path, surrogate=training)
    code, out, err = Albat(path, tmp_path / "prefect", prefect_server).ended()
    assert code == 1
    said = " ".join(err.split())  # lines are folded to the terminal's width
    assert "expected a finite loss, got" in said
    assert "lower this training's learning_rate" in said
    assert "write mixture: Adaptation data only" in out
    assert "fine-tune" not in out
    assert not (tmp_path / "runs").exists()
