"""Where a backbone's files are, and what they amount to."""

import hashlib
from functools import lru_cache
from pathlib import Path

from albat_core import storage
from albat_core.backbones.base import BackboneConfig
from albat_core.errors import BackboneError

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")


def backbone_folder(config: BackboneConfig) -> Path:
    """Return the local folder with the backbone, fetched first where it is remote or on the hub.

    Raises:
        BackboneError: there is none, or it has no safetensors weights.
    """
    folder = Path(config.path).expanduser()
    if storage.is_remote(config.path):
        name = storage.tree_fingerprint(config.path)[:16]
        folder = storage.download(config.path, storage.fetched_folder("backbones", name))
    elif not folder.is_dir():
        folder = _from_hub(config)
    if not (folder / "config.json").is_file():
        raise BackboneError(
            "expected a transformers model folder, found no config.json",
            where=str(folder),
            remedy="name the folder that save_pretrained wrote",
        )
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        raise BackboneError(
            f"expected weights as *.safetensors, found {', '.join(pickled) or 'none'}",
            where=str(folder),
            remedy="save the model with safe_serialization=True: pickled weights are never read",
        )
    return folder


def _from_hub(config: BackboneConfig) -> Path:
    looks_local = config.path.startswith((".", "/", "~")) or config.path.count("/") != 1
    if looks_local:
        raise BackboneError(
            "expected a model folder, found none",
            where=config.path,
            remedy="check backbone.path; a hub id has the form owner/name",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                config.path,
                revision=config.revision,
                allow_patterns=[*_WEIGHTS, *_DESCRIPTION],
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BackboneError(
            f"found neither a folder nor a model on the hub ({type(error).__name__})",
            where=config.path,
            remedy="check backbone.path and the network, or name a local folder",
        ) from error


def folder_fingerprint(folder: Path, *, weights: bool) -> str:
    """Return a digest of a backbone's description, and of its weights if asked; 32 hex digits."""
    files = {path for pattern in _DESCRIPTION for path in folder.glob(pattern)}
    files -= set(folder.glob("*.safetensors.index.json"))
    if weights:
        files |= set(folder.glob("*.safetensors"))
    running = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        stat = path.stat()
        running.update(f"{path.name}:{_digest(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return running.hexdigest()


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    """Digest once as long as size and time of the file stay."""
    del size, modified
    return storage.digest(path)
