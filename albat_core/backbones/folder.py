"""Where a backbone's files are, and what they amount to."""

import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError, ConfigError
from albat_core.store import fingerprints, storage, transfer
from albat_core.store.digests import known_digest
from albat_core.store.pointers import LONGEST, REMEDY, is_pointer

logger = logging.getLogger(__name__)

MODEL_CONFIG = "config.json"
"""Describes a transformers model."""
PIPELINE_INDEX = "model_index.json"
"""Names the components of a diffusers pipeline, each in a folder of its own."""
BITSANDBYTES = "bitsandbytes"
"""The method of quantization that gradients go through."""
SENTENCE_MODULES = "modules.json"
"""Names the modules of a sentence-transformers model, some in folders of their own."""

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_DESCRIPTION = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")
_OTHER_WEIGHTS = ("*.bin", "*.pt*", "*.ckpt", "*.gguf", "*.onnx")
_PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_VARIANTS = ("*.fp16.*", "*.bf16.*", "*non_ema*", "*.onnx*")  # the same weights, otherwise


def backbone_folder(config: BackboneConfig) -> Path:
    """Return the local folder with the backbone, see ``model_folder``."""
    return model_folder(config.path, config.revision, (BITSANDBYTES,))


def model_folder(path: str, revision: str | None = None, taken: Collection[str] = ()) -> Path:
    """Return the local folder with a model, fetched first where it is remote or on the hub.

    Args:
        path: local folder, address in a store, or hub id.
        revision: on the hub.
        taken: methods by which the weights of a model of transformers may be quantized.

    Raises:
        BackboneError: there is none, or it has no safetensors weights.
    """
    folder = Path(path).expanduser()
    if storage.is_remote(path):
        _refuse_single_file(path)
        folder = _fetched(path)
    elif not folder.is_dir():
        _refuse_single_file(path)
        folder = _from_hub(path, revision)
    markers = (MODEL_CONFIG, PIPELINE_INDEX, SENTENCE_MODULES)
    if not any((folder / marker).is_file() for marker in markers):
        for file in () if any(folder.glob("*.json")) else sorted(folder.glob("*")):
            _refuse_single_file(str(file))
        raise BackboneError(
            f"expected a model folder, found neither {MODEL_CONFIG} nor {PIPELINE_INDEX}",
            where=str(folder),
            remedy="name the folder that save_pretrained wrote",
        )
    rooms = _rooms(folder)
    for room in rooms:
        _refuse_quantized(room, taken if rooms == [folder] else ())  # of pipelines none is
    if not any(file for room in rooms for file in room.glob("*.safetensors")):
        pickled = sorted(p.name for room in rooms for end in _OTHER_WEIGHTS for p in room.glob(end))
        raise BackboneError(
            f"expected weights as *.safetensors, found {', '.join(pickled) or 'none'}",
            where=str(folder),
            remedy="save the model with safe_serialization=True (of GGUF: `albat convert`): "
            "pickled weights are never read, nor such of other programs",
        )
    return folder


def _fetched(path: str) -> Path:
    """Return a remote folder's copy on this machine, each file as it came."""
    place = storage.cache_folder("backbones", fingerprints.tree_fingerprint(path)[:16])
    folder = transfer.download(path, place)
    if not folder.exists():  # there is nothing there, by the listing
        return folder
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".part"]
    there = {p.relative_to(folder).as_posix(): known_digest(str(p)) for p in files}
    noted = place.with_name(f"{place.name}.json")
    try:
        came = json.loads(noted.read_bytes())
    except (OSError, ValueError):
        came = {}
    if wrong := [name for name, digest in there.items() if came.get(name, digest) != digest]:
        logger.warning("%s is not what was fetched: it is fetched again", folder / wrong[0])
        transfer.download(path, place, only=wrong)
        there |= {name: storage.digest(folder / name) for name in wrong}
    if there != came:
        storage.write_bytes(str(noted), json.dumps(there).encode())
    for used in (folder, noted):  # when it was last
        os.utime(used)
    return folder


def _refuse_single_file(path: str) -> None:
    """Refuse a model that is one file: such are turned into folders once."""
    refuse_pickled(path)
    for ending, what, more in (
        (".gguf", "a GGUF file", ""),
        (".safetensors", "a checkpoint in one file", " --config PIPELINE"),
    ):
        if path.lower().endswith(ending):
            if Path(path).with_name(MODEL_CONFIG).is_file():
                raise BackboneError(
                    f"expected a model folder, got {what} of it",
                    where=path,
                    remedy=f"name the folder: {Path(path).parent}",
                )
            raise BackboneError(
                f"expected a model folder, got {what}",
                where=path,
                remedy=f"turn it into a folder once: `albat convert FILE{ending} FOLDER{more}`",
            )


def refuse_pickled(path: str) -> None:
    """Refuse a checkpoint that runs whatever code is in it when it is read.

    Raises:
        BackboneError: its name ends as those of such files do.
    """
    if path.lower().endswith(_PICKLED):
        raise BackboneError(
            "expected safetensors, got a pickled checkpoint: it may hold code, which reading it "
            "would run",
            where=path,
            remedy="take the same model as .safetensors, as most are published too",
        )


class Converted(NamedTuple):
    """What came of a model in one file."""

    parameters: int
    """Weights, tied ones once."""
    types: Mapping[str, int]
    """Tensors of the file by how they are kept there, such as ``Q4_1`` or ``F16``."""


@contextmanager
def converted_folder(file: Path, folder: Path) -> Iterator[Path]:
    """Give the place to write a folder that a file becomes; it is there once all is written.

    Raises:
        BackboneError: there is no such file.
        ConfigError: the folder is there.
    """
    if not file.is_file():
        raise BackboneError("expected a file, found none", where=str(file), remedy="check the path")
    if folder.exists():
        raise ConfigError(
            "expected a folder to be made, it is there already",
            where=str(folder),
            remedy="name another",
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as made:
        draft = Path(made) / "draft"
        yield draft
        draft.rename(folder)


def quantization_of(folder: Path) -> dict[str, Any] | None:
    """Return how a model's weights are quantized, by ``quant_method``; None: they are not."""
    description = folder / MODEL_CONFIG
    try:
        said = json.loads(description.read_text(encoding="utf-8")) if description.is_file() else {}
    except ValueError:
        return None  # told by what reads it
    how = said.get("quantization_config") or said.get("quantization")  # the latter: MLX
    if not how:
        return None
    if not isinstance(how, dict):
        return {"quant_method": str(how)}
    older = "load_in_8bit" in how or "load_in_4bit" in how  # than the name of the method
    return {"quant_method": BITSANDBYTES if older else "MLX", **how}


def _refuse_quantized(room: Path, taken: Collection[str]) -> None:
    """Refuse weights that are quantized by another method than those that are taken."""
    method = (quantization_of(room) or {}).get("quant_method")
    if method and method not in taken:
        raise BackboneError(
            f"expected weights in full precision, found a quantized checkpoint ({method})",
            where=str(room),
            remedy="name the model that it was made from"
            + (f"; of quantized ones, {' and '.join(taken)} alone is read" if taken else ""),
        )


def refuse_incomplete(folder: Path) -> None:
    """Look whether a backbone's files are all there and whole, by their beginnings.

    Raises:
        BackboneError: a file is missing, a pointer of Git LFS in its place, or truncated.
    """
    for room in _rooms(folder):
        for path in sorted({p for end in (*_DESCRIPTION, *_WEIGHTS) for p in room.glob(end)}):
            with path.open("rb") as file:
                if is_pointer(file.read(LONGEST)):
                    raise BackboneError(
                        f"expected {path.name}, found a pointer of Git LFS in its place",
                        where=str(path),
                        remedy=REMEDY,
                    )
            if path.suffix == ".safetensors":
                with open_weights(path):
                    pass
        _refuse_missing_shards(room)


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file, of which the header is read.

    Raises:
        BackboneError: it is damaged, truncated or no such file.
    """
    from safetensors import SafetensorError, safe_open

    with ExitStack() as files:
        try:
            opened = files.enter_context(safe_open(path, "np"))
        except (SafetensorError, OSError) as error:
            raise BackboneError(
                f"expected whole weights, got a file that is damaged, truncated or other ({error})",
                where=str(path),
                remedy="copy or download it again",
            ) from error
        yield opened


def count_weights(folder: Path) -> int:
    """Return about how many weights a backbone has, by the headers of its files."""
    count = 0
    for room in _rooms(folder):
        sizes: dict[str, int] = {}  # variants have the same names
        for path in room.glob("*.safetensors"):
            with open_weights(path) as file:
                for name in file.keys():  # noqa: SIM118
                    tensor = file.get_slice(name)
                    packed = 2 if tensor.get_dtype() == "U8" else 1  # of 4 bits, two in a byte
                    sizes[name] = packed * math.prod(tensor.get_shape())
        count += sum(sizes.values())
    return count


def _refuse_missing_shards(room: Path) -> None:
    for index in sorted(room.glob("*.safetensors.index.json")):
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise unreadable("list of weights", index, error) from error
        missing = sorted(name for name in named if not (room / name).is_file())
        if len(missing) == len(named) and any(room.glob("*.safetensors")):
            continue  # a variant that was not fetched
        if missing:
            raise BackboneError(
                f"expected the {len(named)} files of weights that {index.name} names, "
                f"{len(missing)} are missing: {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}",
                where=str(room),
                remedy="copy or download the model again",
            )


def hub_id(path: str) -> str | None:
    """Return the id that a model has on the hub; None for a folder that is not of the hub's cache.

    Args:
        path: as configured: local folder, address in a store, or hub id.
    """
    if storage.is_remote(path):
        return None
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return path
    cached = next((part for part in folder.parts if part.startswith("models--")), None)
    return "/".join(cached.split("--")[1:]) if cached else None


def refuse_other_kind(folder: Path, expected: str, kind: str) -> None:
    """Refuse a folder that lacks the file which every backbone of its kind has.

    Raises:
        BackboneError: it does.
    """
    if not (folder / expected).is_file():
        raise BackboneError(
            f"expected a {kind} backbone, found no {expected}",
            where=str(folder),
            remedy="name the folder that save_pretrained wrote, or set backbone.kind to what it is",
        )


def _rooms(folder: Path) -> list[Path]:
    """Return the folders that a backbone's files are in: a pipeline's components have their own."""
    if (folder / SENTENCE_MODULES).is_file():
        return [folder, *sorted(path for path in folder.rglob("*") if path.is_dir())]
    index = folder / PIPELINE_INDEX
    if not index.is_file():
        return [folder]
    try:
        components = sorted(json.loads(index.read_text(encoding="utf-8")))
    except ValueError as error:
        raise unreadable("pipeline", index, error, library="diffusers") from error
    return [folder, *(folder / name for name in components if (folder / name).is_dir())]


def _from_hub(path: str, revision: str | None) -> Path:
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local:
        raise BackboneError(
            "expected a model folder, found none",
            where=path,
            remedy="check the path; a hub id has the form owner/name",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = [*_WEIGHTS, *_DESCRIPTION]
        folder = snapshot_download(
            path, revision=revision, allow_patterns=[PIPELINE_INDEX, MODEL_CONFIG]
        )
        if (Path(folder) / PIPELINE_INDEX).is_file():  # what lies beside is other programs' copies
            files = [PIPELINE_INDEX, *(f"*/{pattern}" for pattern in files)]
        return Path(
            snapshot_download(
                path,
                revision=revision,
                allow_patterns=files,
                ignore_patterns=list(_VARIANTS),
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BackboneError(
            f"found neither a folder nor a model on the hub ({type(error).__name__})",
            where=path,
            remedy="check the path and the network, or name a local folder",
        ) from error


def folder_fingerprint(folder: Path, *, weights: bool) -> str:
    """Return a digest of a backbone's description, and of its weights if asked; 32 hex digits."""
    files = set()
    for room in _rooms(folder):
        files |= {path for pattern in _DESCRIPTION for path in room.glob(pattern)}
        files -= set(room.glob("*.safetensors.index.json"))
        if weights:
            files |= set(room.glob("*.safetensors"))
    running = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        stat = path.stat()
        name = path.relative_to(folder).as_posix()
        running.update(f"{name}:{_digest(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return running.hexdigest()


@lru_cache(maxsize=4096)
def _digest(path: Path, size: int, modified: int) -> str:
    """Digest once as long as size and time of the file stay, one just written too."""
    del size, modified
    return known_digest(str(path))


def unreadable(
    what: str, folder: Path, error: Exception, library: str = "transformers"
) -> BackboneError:
    """Return the error for a tokenizer, model or adapter that cannot be loaded."""
    reason = str(error).strip().splitlines()
    return BackboneError(
        f"expected a {what} that {library} can load ({type(error).__name__}: "
        f"{reason[0] if reason else 'no reason given'})",
        where=str(folder),
        remedy="check that the folder is complete; code in it runs only with trust_remote_code",
    )
