"""Secrets of addresses: what is left out, and what is none."""

import logging
from pathlib import Path

import pytest

from albat_core.errors import InputError
from albat_core.progress import Silent, reporting_to, track
from albat_core.redaction import redacted, without_secrets
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import Found, distinct, locate
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore, Built

SECRET = "5eCr3t"
SIGNED = f"https://host/data/a.jsonl?part=1&X-Amz-Date=20260101T0000Z&X-Amz-Signature={SECRET}"
ADDRESSES = [
    f"http://user:{SECRET}@host/a.jsonl",
    f"https://{SECRET}@host:8080/a",
    f"s3://key:{SECRET}/with+slash@bucket/prefix",
    f"http://user:p@{SECRET}@host/a",
    SIGNED,
    f"https://host/a?sv=1&sig={SECRET}%3D&se=2026",
    f"https://host/a?token={SECRET}",
    f"https://host/c/my rows.jsonl?sp=r&sig={SECRET}",
    f"https://host/a?api_key={SECRET}#part",
    f"https://host/a#access_token={SECRET}",
    f"https://host/a?code={SECRET}&jwt={SECRET}",
    f"https://storage/a?GoogleAccessId={SECRET}&Expires=1&Signature={SECRET}",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_secrets_are_left_out_wherever_an_address_stands(address: str) -> None:
    for text in (address, f"cannot read '{address}' (403), url={address}", f"x,{address}"):
        assert SECRET not in redacted(text)
    assert SECRET not in str(without_secrets({"corpus": [{"path": address}]}))
    assert "host" in redacted(address) or "bucket" in redacted(address) or "storage" in address


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/prefix/a@b.jsonl",
        "http://host:8080/a@b?part=3&split=train",
        "hf://datasets/user/name@main/a.parquet",
        "/data/a?token=1",
        "mail a@b.org: x=1; y=2",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_template_is_no_address() -> None:
    template = "See https://host/?token={token} for {question}"
    assert without_secrets({"template": template}) == {"template": template}
    address = "https://host/?code={a}"
    assert without_secrets({"prompt_template": address}) == {"prompt_template": address}


def test_an_error_says_no_secret() -> None:
    error = InputError(f"no answer from {SIGNED}", where=SIGNED, remedy=f"look at {SIGNED}")
    assert SECRET not in str(error) + repr(error) + str(error.args)
    assert "https://host/data/a.jsonl?part=1" in error.where


def test_a_log_line_says_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("albat_core.store", "flows.watching", "tasks.stages"):
        logging.getLogger(name).warning("%s cannot be read: %s", SIGNED, ValueError(SIGNED))
    assert len(caplog.messages) == 3
    assert SECRET not in caplog.text
    assert "part=1" in caplog.text


def test_a_new_signature_changes_no_setting() -> None:
    one, other = (
        SourceConfig(path=(each, "b.jsonl")).settings()
        for each in (SIGNED, SIGNED.replace(SECRET, "other").replace("2026", "2027"))
    )
    assert one == other
    assert SECRET not in str(one)
    assert one != SourceConfig(path=(SIGNED.replace("part=1", "part=2"), "b.jsonl")).settings()


def test_names_in_ids_hold_no_secret_and_differ() -> None:
    def found(uri: str) -> Found:
        return Found(uri, redacted(uri).rpartition("/")[2], "jsonl", "a", uri)

    uris = [SIGNED, SIGNED.replace(SECRET, "other"), SIGNED.replace("data", "more")]
    names = [file.name for file in distinct(map(found, uris))]
    assert len(set(names)) == 3
    assert SECRET not in str(names)


def test_a_source_s_name_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "exists", lambda _: True)
    monkeypatch.setattr(storage, "list_files", lambda uri: [uri])
    [file] = locate(SIGNED, SourceConfig(path=SIGNED, format="jsonl"))
    assert SECRET not in file.name + file.label
    assert file.uri == SIGNED


def test_a_manifest_holds_no_secret(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    ref = store.produce(
        "words",
        1,
        {"source": {"path": SIGNED}},
        {"file": SIGNED},
        lambda _: Built(facts={"files": [SIGNED]}),
    )
    assert SECRET not in (tmp_path / str(ref) / "manifest.json").read_text()
    assert store.manifest(ref).facts["files"] == [redacted(SIGNED)]


def test_progress_names_no_secret() -> None:
    labels = []

    class Notes(Silent):
        def track(self, label: str, total: int, unit: str):
            labels.append(label)
            return super().track(label, total, unit)

    with reporting_to(Notes()), track(f"read {SIGNED}", 1, ""):
        pass
    assert labels == [f"read {redacted(SIGNED)}"]
