"""Adapters for the Hub: the folder that is uploaded, its card, and a commit to a stand-in."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from albat_core.errors import ConfigError, InputError
from albat_core.records.runs import ALBAT, LABELS
from albat_core.report.wording import between, markdown_cell
from albat_core.runs.chain import Chain
from albat_core.runs.pushing import push, write_folder
from albat_core.runs.registry import Entry
from albat_core.stages.report import read_results
from albat_core.store.artifacts import ArtifactStore


@pytest.fixture
def entry(chain: Chain) -> Entry:
    return chain.register(evaluated=True)


def test_names_of_sources_keep_to_their_cells() -> None:
    assert markdown_cell("Müller | Söhne\n2") == r"Müller \| Söhne 2"


def test_what_would_be_uploaded_is_the_adapter_with_its_card(
    chain: Chain, store: ArtifactStore, entry: Entry, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    write_folder(store, entry, folder)
    _, front, card = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "peft"
    for heading in ("## Data", "## Mixture", "## Results"):
        assert card.count(heading) == 1
    content = read_results(store, chain.report)
    (albat,) = (arm for arm in content.arms if arm.name == ALBAT)
    assert "| corpus | `*.jsonl` |" in card
    assert "| adapted to | `adaptation.jsonl` |" in card
    assert f"alpha = {chain.alpha:.3f}" in card
    assert "| backbone | plants |" in card
    assert content.headline in card
    assert f"**{LABELS[ALBAT]}**" in card
    assert between(albat.loss) in card
    model = AutoModelForCausalLM.from_pretrained(chain.config.backbone.path)
    PeftModel.from_pretrained(model, folder)
    texts = [path for path in folder.rglob("*") if path.suffix in (".md", ".json")]
    assert len(texts) > 2
    for path in texts:
        assert str(Path(chain.config.backbone.path).parent) not in path.read_text(), path.name
    with pytest.raises(ConfigError, match="empty folder"):
        write_folder(store, entry, folder)


def test_an_adapter_that_was_not_evaluated_says_so(
    store: ArtifactStore, entry: Entry, tmp_path: Path
) -> None:
    write_folder(store, entry.model_copy(update={"report": None}), tmp_path / "folder")
    assert "Not evaluated." in (tmp_path / "folder" / "README.md").read_text()


class Hub(BaseHTTPRequestHandler):
    """What the Hub says to who makes a repository and commits to it, all files in the commit."""

    files: dict[str, bytes]
    asked: list[dict]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: dict = {}
        status = 200
        if self.path == "/api/repos/create":
            self.asked.append(json.loads(body))
            answer = {"url": f"http://{self.headers['Host']}/owner/name", "name": "owner/name"}
        elif "/preupload/" in self.path:
            named = [file["path"] for file in json.loads(body)["files"]]
            usual = {"uploadMode": "regular", "shouldIgnore": False}
            answer["files"] = [{"path": path, **usual} for path in named]
        elif "/commit/" in self.path:
            status = 403 if self.refuses else 200
            for line in body.splitlines():
                told = json.loads(line)
                if told["key"] == "file":
                    content = base64.b64decode(told["value"]["content"])
                    self.files[told["value"]["path"]] = content
            answer = {"commitOid": "0" * 40, "commitUrl": f"{self.path}/0", "success": True}
        self._say(status, answer)

    def do_GET(self) -> None:
        self._say(200, {"id": "owner/name", "siblings": [], "sha": "0" * 40})

    def _say(self, status: int, answer: dict) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A server of this machine in the Hub's place."""
    handler = type("OneHub", (Hub,), {"files": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_upload_is_a_commit_of_that_folder(
    store: ArtifactStore, entry: Entry, hub: type[Hub], tmp_path: Path
) -> None:
    assert push(store, entry, "owner/name", private=True).endswith("/owner/name")
    assert hub.asked[0]["visibility"] == "private"
    write_folder(store, entry, tmp_path / "same")
    assert {p.name: p.read_bytes() for p in (tmp_path / "same").iterdir()} == hub.files
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(hub.files["adapter_model.safetensors"])
    assert load_file(weights)


def test_what_the_hub_refuses_is_told(store: ArtifactStore, entry: Entry, hub: type[Hub]) -> None:
    hub.refuses = True
    with pytest.raises(InputError, match="the Hub refused it") as raised:
        push(store, entry, "owner/name", private=True)
    assert "HF_TOKEN" in raised.value.remedy
    with pytest.raises(ConfigError, match="owner/name"):
        push(store, entry, "a/b/c", private=True)
