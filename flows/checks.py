"""Looks at a configuration and its inputs, in seconds, for all mistakes at once."""

from collections.abc import Callable, Sequence

from albat_core import storage
from albat_core.adaptation import assign_roles
from albat_core.backbones import check_backbone, encoder_identity
from albat_core.config import RunConfig
from albat_core.corpus import check_source, read_rows
from albat_core.errors import AlbatError
from albat_core.input_files import find_files


def find_mistakes(config: RunConfig) -> list[AlbatError]:
    """Return everything found that would stop the run, before anything is computed."""
    found: list[AlbatError] = _caught(lambda: check_backbone(config.backbone, config.runtime))
    for encoder in (config.embedding.encoder, config.samples.dino, config.samples.clip):
        if encoder is not None:
            found += _caught(lambda path=encoder: _check_encoder(path, config))  # type: ignore[misc]
    for place in (config.runtime.root, config.output):
        found += _caught(lambda uri=place: storage.check_writable(uri))  # type: ignore[misc]
    for role in ("corpus", "adaptation", "heldout"):
        for source in getattr(config, role):
            found += [_in_role(role, error) for error in check_source(source)]
    if not found:
        found += _caught(lambda: _check_split(config))
    return found


def _caught(check: Callable[[], Sequence[AlbatError] | None]) -> list[AlbatError]:
    try:
        return list(check() or ())
    except AlbatError as error:
        return [error]


def _in_role(role: str, error: AlbatError) -> AlbatError:
    return type(error)(error.message, f"{role}: {error.where}", error.remedy)


def _check_encoder(path: str, config: RunConfig) -> None:
    """Find an image encoder's files, as the run will."""
    encoder_identity(path, config.runtime)


def _check_split(config: RunConfig) -> None:
    """Divide the adaptation documents as the run will."""
    files = [file for source in config.adaptation for file in find_files(source)]
    rows = (row for file in files for row in read_rows(file))
    documents = [row.document for row in rows if row.text or row.messages]
    test = 0.0 if config.heldout else config.split.test
    assign_roles(documents, config.split.model_copy(update={"test": test}), config.seed)
