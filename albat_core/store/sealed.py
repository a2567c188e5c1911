"""Small records: JSON with a digest of its own, so that whoever reads one sees a changed byte."""

import hashlib
import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from albat_core.store.stage import canonical_json

Record = TypeVar("Record", bound=BaseModel)

_OWN_DIGEST = "sha256"  # of all else that a record says


def sealed(record: BaseModel) -> bytes:
    """Return a record as JSON, with a digest of its own."""
    said = json.loads(record.model_dump_json())
    return json.dumps(said | {_OWN_DIGEST: _digest(said)}, indent=1).encode()


def unsealed(model: type[Record], content: bytes) -> Record:
    """Return what was sealed; records of before have no digest of their own.

    Args:
        model: of the record; it forbids fields that it does not know.
        content: of its file.

    Raises:
        ValueError: it is no such record, or not as it was written.
    """
    try:
        said = json.loads(content)
    except RecursionError as error:
        raise ValueError("brackets in brackets in brackets") from error
    if not isinstance(said, dict):
        raise ValueError("expected a JSON object")
    own = said.pop(_OWN_DIGEST, None)
    if own not in (None, got := _digest(said)):
        raise ValueError(f"expected SHA-256 {own}, got {got}")
    return model.model_validate_json(json.dumps(said))


def why(error: ValueError) -> str:
    """Return in a few words why a record cannot be read."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = ".".join(map(str, error.errors()[0]["loc"]))
    return f"{error.error_count()} not known or not sound, the first: {first}"


def _digest(said: Any) -> str:
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
