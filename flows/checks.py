"""Looks at a configuration and its inputs, in seconds, for all mistakes at once."""

from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import islice
from typing import Any, ParamSpec

from albat_core.backbones import (
    check_adapter,
    check_backbone,
    check_prompts,
    encoder_identity,
    open_splitter,
)
from albat_core.devices import resolve_device
from albat_core.errors import AlbatError, ConfigError
from albat_core.records.examples import Example
from albat_core.runs.config import RunConfig
from albat_core.sources.checks import check_source
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_problems
from albat_core.sources.formats.base import HEAD
from albat_core.sources.rows import is_used, read_rows
from albat_core.stages.split import assign_roles, refuse_common, refuse_no_test, refuse_repeated
from albat_core.store import storage
from albat_core.store.stage import Runtime
from flows.config import load_config, load_sound_part

Given = ParamSpec("Given")


def check_file(path: str, overrides: dict[str, Any] | None = None) -> list[AlbatError]:
    """Return every mistake in a configuration file, and in the inputs of its sound sections.

    Raises:
        ConfigError: nothing in the file can be read.
    """
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        sound, unsound = load_sound_part(path, overrides)
        return [error, *find_mistakes(sound, unsound)]
    return find_mistakes(config)


def find_mistakes(config: RunConfig, unsound: Collection[str] = ()) -> list[AlbatError]:
    """Return everything found that would stop the run, before anything is computed.

    Args:
        config: of the run.
        unsound: its sections that are not to be looked at.
    """
    found: list[AlbatError] = []
    if "runtime" not in unsound:
        found += _caught(resolve_device, config.runtime)
        found += _caught(storage.check_writable, config.runtime.root)
        found += _runner_problems(config.runtime)
    if "output" not in unsound:
        found += _caught(storage.check_writable, config.output)
    no_backbone: list[AlbatError] = []
    if "backbone" not in unsound:
        anywhere = config.runtime.model_copy(update={"device": "auto"})
        no_backbone = _caught(check_backbone, config.backbone, anywhere)
        found += no_backbone or _demands(config, unsound)
    for place, encoder in _encoders(config).items():
        if encoder is not None and place.partition(".")[0] not in unsound:
            problems = _caught(encoder_identity, encoder, config.runtime)
            found += [_in_role(place, error) for error in problems]
    spoilt = set(unsound)
    for role in ("corpus", "adaptation", "heldout"):
        for source in () if role in unsound else getattr(config, role):
            problems = check_source(source)
            if not problems and not no_backbone and "backbone" not in unsound:
                problems = _caught(_check_cut, source, config)
            if problems:
                spoilt.add(role)
            found += [_in_role(role, error) for error in problems]
    if not spoilt & {"adaptation", "heldout", "split", "seed"}:
        found += _caught(_check_split, config)
    return found


def _runner_problems(runtime: Runtime) -> list[AlbatError]:
    if runtime.runner == "threads" and not runtime.cluster:
        return []
    from flows.running.runners import check_runner  # not for most: Prefect takes a second to import

    return _caught(check_runner, runtime)


def _demands(config: RunConfig, unsound: Collection[str]) -> list[AlbatError]:
    """Return what is asked of a sound backbone that it cannot do."""
    found: list[AlbatError] = []
    adapters = {"surrogate": config.surrogate.adapter, "finetune": config.finetune.adapter}
    for section, adapter in adapters.items():
        if section not in unsound and adapter.target_modules != "auto":
            problems = _caught(check_adapter, config.backbone, adapter)
            found += [_in_role(section, error) for error in problems]
    asked = {"samples": config.samples.all_prompts, "generated": config.generated.prompts}
    for section, prompts in asked.items():
        if prompts and section not in unsound:
            problems = _caught(check_prompts, config.backbone, prompts)
            found += [_in_role(section, error) for error in problems]
    return found


def _encoders(config: RunConfig) -> dict[str, str | None]:
    """Return the image encoders that are configured, by field."""
    return {
        "embedding.encoder": config.embedding.encoder,
        "samples.dino": config.samples.dino,
        "samples.clip": config.samples.clip,
    }


def _caught(
    check: Callable[Given, object], *of: Given.args, **by: Given.kwargs
) -> list[AlbatError]:
    """Return what a check raises, if anything."""
    try:
        check(*of, **by)
    except AlbatError as error:
        return [error]
    return []


def _in_role(role: str, error: AlbatError) -> AlbatError:
    return type(error)(error.message, f"{role}: {error.where}", error.remedy)


def _rows(sources: Sequence[SourceConfig]) -> Iterator[Example]:
    """Yield the rows that will be used; no file is digested."""
    for source in sources:
        for file in find_problems(source)[0]:
            yield from (row for row in read_rows(file) if is_used(row, source))


def _check_cut(source: SourceConfig, config: RunConfig) -> None:
    """Cut a row as the run will: chats need a template of the tokenizer's."""
    for file in find_problems(source)[0][:1]:
        for row in islice(read_rows(file), HEAD):
            if row.text is not None or row.messages is not None:
                open_splitter(config.backbone)(row)
                return


def _check_split(config: RunConfig) -> None:
    """Divide the adaptation documents as the run will."""
    own, other = (
        [(r.example_id, r.source, r.document) for r in _rows(sources)]
        for sources in (config.adaptation, config.heldout)
    )
    refuse_repeated([row[:2] for row in own + other])
    documents = [document for _, _, document in own]
    test = 0.0 if config.heldout else config.split.test
    roles = assign_roles(documents, config.split.model_copy(update={"test": test}), config.seed)
    refuse_common(roles, [document for _, _, document in other])
    refuse_no_test(len(other) if config.heldout else test)
