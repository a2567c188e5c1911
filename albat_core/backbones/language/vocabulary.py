"""Whether two language models read the same tokens."""

from collections.abc import Sequence

from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.errors import BackboneError
from albat_core.records.examples import Example

_TEXT = "It's 3.14%\n\n\tof naïve  code_x = {1: 'É'} – 中文, русский.\r\n"
_PROBE = Example("probe", "probe", "probe", text=_TEXT)
"""What tokenizers of one vocabulary may yet cut or begin in other ways."""


def refuse_other_tokens(
    backbone: BackboneConfig, other: BackboneConfig, rows: Sequence[Example] = ()
) -> None:
    """Look whether another model has a backbone's tokens: vocabulary, ids, and those of rows.

    Args:
        backbone: whose tokens are wanted.
        other: which model.
        rows: as they are cut for the backbone; chats go through each model's own template.

    Raises:
        BackboneError: it has other tokens, or its template refuses a chat.
        InputError: likewise.
    """
    ours, theirs = TextEncoder(backbone), TextEncoder(other)
    known, found = ours.tokenizer.get_vocab(), theirs.tokenizer.get_vocab()
    differing = [t for t in sorted(known.keys() | found.keys()) if known.get(t) != found.get(t)]
    if differing:
        raise _another(
            f"{len(known):,} tokens, got {len(found):,}, {len(differing):,} of them missing or of "
            f"another number, such as {differing[0]!r}",
            backbone,
            other,
        )
    for row in (_PROBE, *rows):
        if ours.tokens(row) != theirs.tokens(row):
            which = "a text" if row is _PROBE else f"example {row.example_id}"
            raise _another(f"tokens, got others of {which}", backbone, other)


def _another(said: str, backbone: BackboneConfig, other: BackboneConfig) -> BackboneError:
    return BackboneError(
        f"expected the tokenizer of {backbone.path}: its {said}",
        where=other.path,
        remedy="name a smaller model of the same family, whose tokenizer and chat template are the "
        "same",
    )
