"""The `albat` command: what it prints, where, and how it ends."""

import unicodedata
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from albat_core.errors import InputError
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from flows.config import starter_config
from flows.console import show_error, show_note
from flows.showing import in_words
from tests.flows.conftest import Albat
from tests.pipelines import save_pipeline
from tests.single_files import write_stable_diffusion
from tests.toys import topic_rows, write_jsonl

COMMANDS = {
    "demo": "Adapt a small language model",
    "run": "Run the whole chain",
    "embed": "Embed corpus and adaptation set",
    "index": "Index the corpus",
    "select": "Select and weigh",
    "mix": "Write the weighted mixture",
    "finetune": "Train the adapter",
    "evaluate": "Compare all arms",
    "init": "Write a commented starter",
    "check": "Look for all mistakes",
    "show": "Say what an artifact is",
    "up": "Start Prefect's server and a worker",
    "down": "Stop what",
    "watch": "Select again whenever",
    "notify": "Tell that adaptation data has changed",
}


def test_help_lists_every_command(albat: Albat) -> None:
    said = albat("--help")
    assert said.code == 0
    for name, summary in COMMANDS.items():
        assert any(name in line and summary in line for line in said.out.splitlines()), name


def test_the_version_is_said(albat: Albat) -> None:
    said = albat("--version")
    assert (said.code, said.out) == (0, f"albat {version('albat')}\n")


def test_the_shell_is_told_what_can_follow(albat: Albat, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--install-completion" in albat("--help").out
    asked = {"_ALBAT_COMPLETE": "complete_bash", "COMP_WORDS": "albat init --m", "COMP_CWORD": "2"}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    assert albat().out.split() == ["--minimal"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_describes_its_options(albat: Albat, name: str) -> None:
    said = albat(name, "--help")
    assert said.code == 0
    assert COMMANDS[name] in said.out
    options = [line for line in said.out.splitlines() if line.strip("│ ").startswith("--")]
    assert options
    for line in options:
        assert len(line.strip("│ ").split("  ")[-1].strip()) > 5, line
    if name not in ("init", "show", "up", "down", "notify"):
        assert "--root" in said.out
        assert "--device" in said.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chek"], "No such command 'chek'"),
        (["check"], "Missing argument 'CONFIG.yaml'"),
        (["check", "run.yaml", "--device", "tpu"], "'tpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["run", "run.yaml", "--rot", "x"], "No such option"),
    ],
)
def test_wrong_use_is_told_with_exit_code_2(albat: Albat, arguments: list[str], said: str) -> None:
    outcome = albat(*arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_init_writes_a_file_once(albat: Albat, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    said = albat("init", path)
    assert said.code == 0
    assert f"albat check {path}" in said.out
    first, _, rest = path.read_text().partition("\n")
    assert first == "# yaml-language-server: $schema=albat.schema.json"
    assert rest == starter_config()
    path.write_text("mine: 1")
    again = albat("init", path)
    assert again.code == 1
    assert f"{path}: the file is there already" in again.err
    assert path.read_text() == "mine: 1"


def test_init_where_nothing_can_be_written(albat: Albat, tmp_path: Path) -> None:
    said = albat("init", tmp_path / "none" / "mine.yaml")
    assert said.code == 1
    assert f"{tmp_path}/none/mine.yaml: expected a place that can be written" in said.err


def test_a_checkpoint_in_one_file_becomes_a_folder(albat: Albat, tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path / "pipeline")
    file = write_stable_diffusion(pipeline, tmp_path / "dream.safetensors")
    said = albat("convert", file, tmp_path / "dream", "--config", pipeline, "--dtype", "float16")
    assert said.code == 0
    assert (
        f"{tmp_path}/dream: 123,755 parameters in float16, of tensors kept as 368 F32" in said.out
    )
    assert (tmp_path / "dream" / "model_index.json").is_file()
    assert "Casting" not in said.err
    again = albat("convert", file, tmp_path / "dream", "--config", pipeline)
    assert again.code == 1
    assert "it is there already" in again.err


def test_check_of_what_is_right(albat: Albat, toy: Path) -> None:
    said = albat("check", toy)
    assert (said.code, said.err) == (0, "")
    assert "no mistakes found" in said.out
    assert not (toy.parent / "artifacts").exists()


def changed(toy: Path, folder: Path, **changes: Any) -> Path:
    """Write the toy's configuration with changes, its inputs named from wherever it lies."""
    config = yaml.safe_load(toy.read_text(encoding="utf-8"))
    config["backbone"]["path"] = str(toy.parent / "backbone")
    config["runtime"]["root"] = str(folder / "artifacts")
    for source in (*config["corpus"], config["adaptation"]):
        source["path"] = str(toy.parent / source["path"])
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config | changes, sort_keys=False))
    return path


@pytest.fixture
def _elsewhere() -> Iterator[None]:
    """Name a server that is not there: none is started, and none may be asked."""
    from prefect.settings import PREFECT_API_URL
    from prefect.settings.context import temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("command", ["check", "run", "index"])
def test_every_mistake_in_the_inputs_is_told_at_once(
    albat: Albat, toy: Path, tmp_path: Path, command: str
) -> None:
    write_jsonl(tmp_path / "good.jsonl", topic_rows("plants", 4))
    (tmp_path / "latin.txt").write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    (tmp_path / "backbone").mkdir()
    config = changed(
        toy,
        tmp_path,
        backbone={"path": "backbone"},
        corpus=[{"path": "god.jsonl"}, {"path": "good.jsonl", "text_column": "txt"}],
        adaptation={"path": "s4://bucket/file.jsonl"},
        heldout={"path": "latin.txt"},
    )
    said = albat(command, config)
    assert said.code == 1
    for expected in (
        f"{tmp_path}/backbone: expected a model folder, found neither config.json nor "
        "model_index.json",
        "name the folder that save_pretrained wrote",
        f"corpus: {tmp_path}/god.jsonl: expected a file or a folder, found none",
        f"did you mean {tmp_path}/good.jsonl?",
        f"corpus: {tmp_path}/good.jsonl: text_column names column 'txt', which the file does not",
        "did you mean 'text'?",
        "adaptation: s4://bucket/file.jsonl: expected a local path or an s3:// address",
        f"heldout: {tmp_path}/latin.txt: expected UTF-8, got 0xfc at byte 2",
    ):
        assert expected in said.err, expected
    assert said.err.count("expected") >= 4
    assert not (tmp_path / "artifacts").exists()


def test_mistakes_in_the_file_are_told_with_their_lines(albat: Albat, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("backbone: {pth: b}\ncorpus: {path: c}\nadaptation: {path: a}\nseed: x\n")
    said = albat("check", path)
    assert said.code == 1
    assert f"error: {path}: 3 mistakes:" in said.err
    for line in (
        "line 1: 'backbone.path' is missing",
        "line 1: unknown key 'backbone.pth'; did you mean 'path'?",
        "line 4: 'seed': input should be a valid integer",
    ):
        assert line in said.err


@pytest.mark.usefixtures("_elsewhere")
def test_mistakes_in_the_file_do_not_hide_those_in_the_inputs(
    albat: Albat, toy: Path, tmp_path: Path
) -> None:
    config = changed(
        toy,
        tmp_path,
        backbone={"path": "./none"},
        corpus={"path": "none.jsonl", "txt_column": "text"},  # unsound: not looked at
        heldout={"path": "gone.jsonl"},
        runtime={"device": "cuda", "root": str(tmp_path / "artifacts")},
        mixtur={"rows": 3},
    )
    said = albat("check", config)
    assert said.code == 1
    for expected in (
        "unknown key 'mixtur'; did you mean 'mixture'?",
        "unknown key 'corpus.txt_column'; did you mean 'text_column'?",
        f"{tmp_path}/none: expected a model folder, found none",
        f"heldout: {tmp_path}/gone.jsonl: expected a file or a folder, found none",
    ):
        assert expected in said.err, expected
    assert ("expected a CUDA device" in said.err) is not torch.cuda.is_available()
    assert "none.jsonl" not in said.err
    split = changed(toy, tmp_path, corpus={"path": "none.jsonl"}, split={"folds": 50}, seed=-1)
    assert "expected at least 50 documents" not in albat("check", split).err  # seed is unknown
    split = changed(toy, tmp_path, corpus={"path": "none.jsonl"}, split={"folds": 50})
    assert "expected at least 50 documents" in albat("check", split).err


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("command", ["check", "run"])
def test_what_no_step_of_a_run_tells_is_told_before_it(
    albat: Albat, toy: Path, tmp_path: Path, command: str
) -> None:
    for name, topic in (("train", "plants"), ("test", "plants"), ("other", "ships")):
        rows = [{**row, "id": f"{name}-{row['id']}"} for row in topic_rows(topic, 20)]
        write_jsonl(tmp_path / "set" / f"{name}.jsonl", rows)
    columns = {"id_column": "id", "document_column": "doc"}
    config = changed(
        toy,
        tmp_path,
        corpus={"path": "set", **columns},
        adaptation={"path": "set/t*.jsonl", **columns},
        split={"folds": 90},  # refused, so that nothing is computed
    )
    said = albat(command, config)
    assert "expected at least 90 documents" in said.err
    for role, path in (("corpus", "set"), ("adaptation", "set/t*.jsonl")):
        for split in ("train", "test"):
            note = f"note: {role} ({tmp_path}/{path}): files of the split {split}, read as one"
            assert said.out.count(note) == 1
    assert said.out.count("files of the adaptation set, left out as copies: 2") == 1


def test_control_characters_move_nothing_in_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_note("a\x1b]0;title\x07b\x1b[2Jc\rd\x9be\n\tf[bold]")
    show_error(InputError("got 'x\x1b[31m'", where="a\0.jsonl:0", remedy="take \x7f out"))
    said = capsys.readouterr()
    kinds = {c: unicodedata.category(c) for c in said.out + said.err}
    assert {letter for letter, kind in kinds.items() if kind == "Cc"} <= {"\n", "\t"}
    assert "\N{SYMBOL FOR ESCAPE}[2Jc" in said.out and "[bold]" in said.out
    assert "a\N{SYMBOL FOR NULL}.jsonl" in said.err


def test_long_paths_of_an_error_are_not_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.console.errors.width", 80)  # where there is no terminal
    path = "/folder" * 30
    show_error(InputError("expected a file", where=path, remedy=f"see {path}"))
    assert capsys.readouterr().err.count(path) == 2


def test_a_file_that_is_not_there(albat: Albat, tmp_path: Path) -> None:
    for command in ("check", "run"):
        said = albat(command, tmp_path / "none.yaml")
        assert said.code == 1
        assert f"error: {tmp_path}/none.yaml: expected a YAML file" in said.err
        assert "albat init" in said.err


def test_ctrl_c_before_a_run_has_begun_is_answered(
    albat: Albat, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.config.load_config", stopped)
    said = albat("run", toy)
    assert said.code == 130
    assert "stopped at once; what was finished is kept" in said.err


@pytest.fixture
def artifact(tmp_path: Path) -> tuple[ArtifactStore, ArtifactRef]:
    """An artifact of one file below the root."""
    store = ArtifactStore(str(tmp_path / "root"))

    def build(folder: Path) -> Built:
        (folder / "rows.txt").write_text("one\ntwo\n")
        return Built(rows=2, facts={"kind": "[bold]toy[/]"})

    return store, store.produce("toy", 3, {"knob": 0.5}, {"input": "abc"}, build)


def test_show_tells_what_an_artifact_is(
    albat: Albat, artifact: tuple[ArtifactStore, ArtifactRef]
) -> None:
    store, ref = artifact
    manifest = store.manifest(ref)
    said = albat("show", ref.key[:6], "--root", store.root)
    assert said.code == 0
    for expected in (
        str(ref),
        str(store.folder(ref)),
        f"{manifest.created[:10]} {manifest.created[11:16]} UTC",
        "knob",
        "0.5",
        "abc",
        "[bold]toy[/]",
        "rows.txt",
        manifest.files[0].sha256,
        "torch",
    ):
        assert expected in said.out, expected
    assert "digests are as" not in said.out


@pytest.mark.parametrize(
    ("value", "exact", "said"),
    [
        (5.862708317414495, False, "5.86"),
        (0.0001, True, "0.0001"),
        (8192, True, "8192"),
        (45310, False, "45,310"),
        (None, False, "none"),
        ((), True, "none"),
        (False, True, "no"),
        ([0.12345, 0.6], False, "0.123, 0.600"),
        (list(range(20)), True, "0, 1, 2, 3, 4, 5, 6, 7 and 12 more"),
        ("auto", True, "auto"),
    ],
)
def test_values_are_shown_in_words(value: object, exact: bool, said: str) -> None:
    assert in_words(value, exact=exact) == said


def test_show_names_settings_as_in_a_configuration_and_facts_in_words(
    albat: Albat, tmp_path: Path
) -> None:
    store = ArtifactStore(str(tmp_path))
    config = {"adapter": {"kind": "lora", "text_encoder": False}, "rank_agreement": 0.9}
    facts = {"best_step": 12, "validation_loss": 5.862708317414495, "train": {"rows": 1234}}
    ref = store.produce("toy", 3, config, {}, lambda _: Built(facts=facts))
    lines = [line.split() for line in albat("show", ref, "--root", tmp_path).out.splitlines()]
    for line in (
        "adapter.kind lora",
        "adapter.text_encoder no",
        "rank_agreement 0.9",
        "best step 12",
        "validation loss 5.86",
        "train, rows 1,234",
    ):
        assert line.split() in lines, line


def test_digests_are_whole_in_a_narrow_terminal(
    albat: Albat, artifact: tuple[ArtifactStore, ArtifactRef], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, ref = artifact
    monkeypatch.setattr("flows.console.console.width", 80)
    said = albat("show", ref, "--root", store.root)
    line = next(line for line in said.out.splitlines() if line.endswith("rows.txt"))
    assert line.split() == [store.manifest(ref).files[0].sha256, "8", "rows.txt"]


def test_show_lists_artifacts_also_beside_a_broken_one(
    albat: Albat, artifact: tuple[ArtifactStore, ArtifactRef]
) -> None:
    store, ref = artifact
    other = store.produce("toy", 3, {"knob": 1}, {}, lambda _: Built(rows=7))
    (store.folder(ref) / "rows.txt").unlink()
    said = albat("show", "--root", store.root)
    assert said.code == 0
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    assert set(lines) == {str(ref), str(other)}
    assert "incomplete" in lines[str(ref)]
    assert "7 rows" in lines[str(other)]
    assert "no artifacts" in albat("show", "--root", store.root + "/none").out


def test_show_verifies_every_byte(
    albat: Albat, artifact: tuple[ArtifactStore, ArtifactRef]
) -> None:
    store, ref = artifact
    good = albat("show", ref, "--root", store.root, "--verify")
    assert good.code == 0
    assert "all digests are as the manifest says" in good.out
    (store.folder(ref) / "rows.txt").write_text("one\ntwO\n")  # as long as before
    assert albat("show", ref, "--root", store.root).code == 0
    bad = albat("show", ref, "--root", store.root, "--verify")
    assert bad.code == 1
    assert f"{ref}: expected unchanged files, rows.txt changed" in bad.err
    assert "run again" in bad.err


def test_show_of_none_or_several(albat: Albat, artifact: tuple[ArtifactStore, ArtifactRef]) -> None:
    store, _ = artifact
    other = store.produce("else", 1, {}, {}, lambda _: Built())
    none = albat("show", "zzz", "--root", store.root)
    assert none.code == 1
    assert "expected one artifact named 'zzz', found none" in none.err
    several = albat("show", "else/", "--root", store.root)
    assert several.code == 0  # the only one of its stage
    assert str(other) in several.out
    store.produce("else", 1, {"n": 1}, {}, lambda _: Built())
    several = albat("show", "else/", "--root", store.root)
    assert several.code == 1
    assert str(other) in several.err
    assert "give more of the key" in several.err
