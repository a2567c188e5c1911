"""A finished adapter for the Hugging Face Hub: its folder, with a card of what it is made of."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from albat_core.errors import AlbatError, ConfigError, InputError
from albat_core.records.examples import rows_beside
from albat_core.records.mixtures import described_rows, generated_rows
from albat_core.redaction import redacted
from albat_core.report.content import ReportContent
from albat_core.report.markdown import results
from albat_core.report.wording import caution, markdown_cell
from albat_core.runs.registry import Entry
from albat_core.stages.report import read_results
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore

CARD = "README.md"
_KEPT = "checkpoints"  # adapters on the way, for scorers alone
_PAPER = "https://arxiv.org/abs/2506.04288"
_ROLES = {"corpus": "corpus", "adaptation": "adapted to", "heldout": "held out"}


def write_folder(store: ArtifactStore, entry: Entry, folder: Path) -> None:
    """Write what is uploaded: the adapter, and a card with data, mixture, alpha and results.

    No row of anybody's data is in it, and no folder of this machine.

    Args:
        store: where the adapter is.
        entry: of the registry.
        folder: that is made.

    Raises:
        ConfigError: there is something in the folder already, or a file in its place.
        ArtifactError: adapter or report is lost; nothing is written then.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "expected an empty folder, or none",
            where=str(folder),
            remedy="name another, or remove it",
        )
    its = store.folder(entry.adapter)
    content = read_results(store, entry.report) if entry.report else None
    before = (its / CARD).read_text(encoding="utf-8") if (its / CARD).exists() else ""
    parts = [before.rstrip(), _data(entry.config), _mixture(store, entry), _worth(entry, content)]
    left = shutil.ignore_patterns(_KEPT, ".*")  # by a fetch that was killed, for one
    shutil.copytree(its, folder, ignore=left, dirs_exist_ok=True)
    (folder / CARD).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def push(store: ArtifactStore, entry: Entry, hub_id: str, *, private: bool) -> str:
    """Upload an adapter with its card, as a commit of a repository that is made where it is not.

    Args:
        store: where the adapter is.
        entry: of the registry.
        hub_id: ``owner/name``.
        private: whether only those may read it that its owner lets.

    Returns:
        address of the repository.

    Raises:
        ConfigError: the name is none of the Hub, nobody is logged in, or all may read what is there
            already.
        InputError: the Hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "adapter")
        write_folder(store, entry, folder)
        api = HfApi()
        try:
            with storage.explained(f"hf://{hub_id}"):
                made = api.create_repo(hub_id, private=private, exist_ok=True)
                if private and api.repo_info(made.repo_id).private is False:
                    raise ConfigError(
                        "expected a private repository, that one is public already",
                        where=hub_id,
                        remedy="say --public, or name another",
                    )
                api.upload_folder(
                    repo_id=made.repo_id, folder_path=folder, commit_message=f"albat: {entry.name}"
                )
        except AlbatError as error:
            answer = error.__cause__
            said = str(answer).splitlines()[0] if str(answer) else type(answer).__name__
            if isinstance(answer, HFValidationError | LocalTokenNotFoundError):
                raise ConfigError(
                    f"expected owner/name on the Hub, and somebody who is logged in ({said})",
                    where=hub_id,
                    remedy="run `hf auth login`, or set HF_TOKEN",
                ) from error
            if isinstance(answer, HfHubHTTPError):
                raise InputError(
                    f"the Hub refused it ({said})",
                    where=hub_id,
                    remedy="check the name, and that HF_TOKEN may write there",
                ) from error
            raise
    return str(made)


def _data(config: Mapping[str, Any]) -> str:
    """Return which sources were read, by their names alone where they are on this machine."""
    lines = ["## Data", "", "| | source | settings |", "|---|---|---|"]
    for role, said in _ROLES.items():
        sources: Sequence[Mapping[str, Any]] = config.get(role) or ()
        for source in sources:
            paths = source["path"] if isinstance(source["path"], list) else [source["path"]]
            asked = {name: source.get(name) for name in ("subset", "split", "share", "filters")}
            told = ", ".join(f"{n}: {v}" for n, v in asked.items() if v not in (None, [], 1.0))
            on_hub = bool(source.get("subset") or source.get("split"))
            names = ", ".join(_named(path, on_hub=on_hub) for path in paths)
            lines.append(f"| {said} | {names} | {told} |")
    made: Mapping[str, Any] = config.get("generated") or {}
    if made.get("prompts") or made.get("freely"):
        from_ = f"prompts: {len(made['prompts'])}" if made.get("prompts") else "freely"
        lines.append(f"| generated by the backbone | | {from_} |")
    if len(lines) == 4:
        lines.append("| | not known | |")
    return "\n".join(lines)


def _named(path: str, *, on_hub: bool) -> str:
    """Return an address without secrets; of a path, or a chain that ends in one, its last part."""
    local = path.startswith((".", "/", "~")) or path.count("/") != 1
    last = path.rpartition("::")[2]
    if (on_hub and not local) or (storage.is_remote(path) and not last.startswith("file:")):
        return f"`{redacted(path)}`"
    return f"`{PurePath(last).name}`"


def _mixture(store: ArtifactStore, entry: Entry) -> str:
    """Return what was trained on, by source."""
    made = generated_rows(store, entry.mixture)
    rows = rows_beside(entry.backbone_rows, made, "of the corpus")
    said = (
        " and ".join([f"{entry.adaptation_rows} adaptation rows", *rows])
        + ("" if rows else " alone")
        + f", alpha = {entry.alpha:.3f}: the share of the objective that rows beside them have."
    )
    return "\n".join(["## Mixture", "", said, "", *_sources(store, entry)])


def _sources(store: ArtifactStore, entry: Entry) -> Iterator[str]:
    table = described_rows(store, entry.mixture).group_by(["role", "source"])
    rows = table.aggregate([("weight", "sum"), ("weight", "count")]).to_pylist()
    yield "| role | source | rows | share of the objective |"
    yield "|---|---|---:|---:|"
    for row in sorted(rows, key=lambda r: (r["role"], -r["weight_sum"], r["source"])):
        cells = (
            row["role"],
            markdown_cell(row["source"]),
            row["weight_count"],
            f"{row['weight_sum']:.3f}",
        )
        yield f"| {' | '.join(map(str, cells))} |"


def _worth(entry: Entry, content: ReportContent | None) -> str:
    """Return verdict and results, where it was evaluated."""
    if content is None:
        return "## Results\n\nNot evaluated."
    said = [content.headline, caution(content.arms, content.pixel_errors), content.verdict]
    made = f"Made on {entry.created[:10]} by [albat]({_PAPER}), as `{entry.name}`."
    table = results(content.arms, content.unit)
    return "\n\n".join(["## Results", *filter(None, said), table, made])
