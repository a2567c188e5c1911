"""A note beside a saved adapter: which backbone it was made for."""

import json
from pathlib import Path

from albat_core.errors import BackboneError

NOTE = "albat.json"


def write_note(folder: Path, fingerprint: str) -> None:
    """Note the backbone's fingerprint."""
    (folder / NOTE).write_text(json.dumps({"backbone": fingerprint}))


def check_note(folder: Path, fingerprint: str, path: str) -> None:
    """Refuse an adapter that says it was made for another backbone.

    Raises:
        BackboneError: it does.
    """
    note = folder / NOTE
    made_for = json.loads(note.read_text())["backbone"] if note.is_file() else fingerprint
    if made_for != fingerprint:
        raise BackboneError(
            f"the adapter was made for backbone {made_for[:8]}, this is {fingerprint[:8]}",
            where=str(folder),
            remedy=f"load it on the backbone it was made for, or train one for {path}",
        )
