"""Language models in one GGUF file, as folders that ``save_pretrained`` writes."""

import json
from pathlib import Path
from typing import Any, Literal

from albat_core.backbones.folder import Converted, converted_folder
from albat_core.errors import BackboneError, ConfigError


def convert_gguf(
    file: Path, folder: Path, dtype: Literal["float32", "bfloat16", "float16"] = "float32"
) -> Converted:
    """Write a GGUF file's model and tokenizer as a folder for transformers.

    Weights become numbers as they stand: what was lost when they were quantized stays lost. In
    float32 nothing more is; the others round once again.

    Args:
        file: of a causal language model, of an architecture that transformers reads.
        folder: that is written; it must not be there.
        dtype: of the weights.

    Raises:
        BackboneError: the file cannot be read.
        ConfigError: the package gguf is not installed, or the folder is there.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConfigError(
            "expected the package gguf, which reads such files",
            where=str(file),
            remedy="pip install 'albat[gguf]'",
        ) from error
    with converted_folder(file, folder) as draft:
        try:
            types: dict[str, int] = {}
            for tensor in GGUFReader(file).tensors:
                types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
            model, tokenizer = _read(file, dtype)
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise BackboneError(
                f"expected a GGUF file that transformers can read ({type(error).__name__}: "
                f"{reason})",
                where=str(file),
                remedy="name the model that it was made from, as save_pretrained wrote it",
            ) from error
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        _leave_out_added(draft / "tokenizer.json", model.config.vocab_size)
    return Converted(sum(p.numel() for p in model.parameters()), types)


def _read(file: Path, dtype: str) -> tuple[Any, Any]:
    """Return model and tokenizer; what the model says of its quantization is left out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {
        "gguf_file": file.name,
        "local_files_only": True,
        "trust_remote_code": False,  # of whatever else lies in its folder
    }
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **where)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=dtype, **where)
    description = read.config
    for note in ("quantization_config", "_name_or_path"):
        if hasattr(description, note):
            delattr(description, note)
    # what was read from such a file refuses to be saved
    model = AutoModelForCausalLM.from_config(description, dtype=dtype)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.name_or_path = ""
    return model, tokenizer


def _leave_out_added(file: Path, vocabulary: int) -> None:
    """Leave tokens out that the model does not embed: transformers adds its own to those given."""
    written = json.loads(file.read_text(encoding="utf-8"))
    written["added_tokens"] = [t for t in written["added_tokens"] if t["id"] < vocabulary]
    file.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8")
