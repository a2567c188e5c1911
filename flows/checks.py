"""Looks at a configuration and its inputs, in seconds, for all mistakes at once."""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, ParamSpec

from albat_core.backbones import (
    check_adapter,
    check_backbone,
    check_chat,
    check_embedder,
    check_packing,
    check_prompts,
    check_sharing,
    check_smaller,
    kind_of,
    open_splitter,
    weights_of,
)
from albat_core.devices import check_device_count, computes_bfloat16, resolve_device
from albat_core.errors import AlbatError, ConfigError, TransientError
from albat_core.measures.lm_eval import check_library, check_task
from albat_core.runs.config import RunConfig
from albat_core.search.library import load_faiss
from albat_core.sources.checks import Look, look_at
from albat_core.sources.rows import is_used
from albat_core.sources.vector_checks import check_vectors
from albat_core.store import storage
from albat_core.store.stage import Runtime
from albat_core.trackers import check_tracker
from albat_core.training.config import FinetuneConfig, check_optimizer
from flows.config import load_config, load_sound_part
from flows.row_checks import (
    Tell,
    check_asked,
    check_common,
    check_cut,
    check_split,
    check_twice,
    try_metric,
)

Given = ParamSpec("Given")
_MILLIONS = 100  # of a backbone's weights, above which the default learning rate is high
_READ = 20  # rows of a source that two backbones have to read alike


def untold(_note: str) -> None:
    """Take what nobody asked to be told."""


def check_file(
    path: str, overrides: dict[str, Any] | None = None, tell: Tell = untold
) -> list[AlbatError]:
    """Return every mistake in a configuration file, and in the inputs of its sound sections.

    Args:
        path: the file.
        overrides: values of ``runtime`` that replace the file's.
        tell: told what the run would skip or change.

    Raises:
        ConfigError: nothing in the file can be read.
    """
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        sound, unsound = load_sound_part(path, overrides)
        return [error, *find_mistakes(sound, unsound, tell, tell)]
    return find_mistakes(config, tell=tell, warn=tell)


def refuse_mistakes(config: RunConfig, warn: Tell = untold, *, lasting: bool = False) -> None:
    """Look at a run's inputs before anything is computed.

    Args:
        config: of the run.
        warn: see ``find_mistakes``.
        lasting: whether what trying again may cure is passed over: tasks try again.

    Raises:
        ConfigError: names every mistake found.
    """
    mistakes = find_mistakes(config, warn=warn)
    if lasting:
        mistakes = [each for each in mistakes if not isinstance(each, TransientError)]
    if mistakes:
        raise ConfigError(
            f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''} found:\n\n"
            + "\n\n".join(map(str, mistakes))
        )


def find_mistakes(
    config: RunConfig,
    unsound: Collection[str] = (),
    tell: Tell = untold,
    warn: Tell = untold,
) -> list[AlbatError]:
    """Return everything found that would stop the run, before anything is computed.

    Args:
        config: of the run.
        unsound: its sections that are not to be looked at.
        tell: told what the run would skip or change, from the rows looked at.
        warn: told what no step of the run tells: splits read as one, files that are in two roles,
            settings that do not suit the backbone.
    """
    found: list[AlbatError] = []
    if "runtime" not in unsound:
        found += _caught(resolve_device, config.runtime) or _device_problems(config.runtime)
        found += _caught(storage.check_writable, config.runtime.root)
        found += _runner_problems(config.runtime)
    found += _library_problems(config, unsound)
    if "output" not in unsound:
        found += _output_problems(config, [] if "tracking" in unsound else config.tracking)
    no_backbone: list[AlbatError] = []
    if "backbone" not in unsound:
        anywhere = config.runtime.model_copy(update={"device": "auto"})
        no_backbone = _caught(check_backbone, config.backbone, anywhere)
        found += no_backbone or _demands(config, unsound, warn)
    found += _embedder_problems(config, unsound, sound=not no_backbone)
    spoilt = set(unsound)
    ids: dict[str, dict[str, str]] = {"corpus": {}, "adaptation": {}}
    uris: dict[str, set[str]] = {"corpus": set(), "adaptation": set(), "heldout": set()}
    asked: list[Look] = []  # of the sources whose rows will be answered
    sound: list[Look] = []
    named: dict[str, list[str]] = {"corpus": [], "adaptation": []}  # ids of rows that are used
    for role in ("corpus", "adaptation", "heldout"):
        for source in () if role in unsound else getattr(config, role):
            look = look_at(source, ids["corpus" if role == "corpus" else "adaptation"])
            asked += [look] * (role == ("heldout" if config.heldout else "adaptation"))
            problems, notes, untold = look.problems, look.notes(), look.untold()
            uris[role] |= look.uris
            sure = role != "corpus" or config.prefilter.share == 1  # else words tell, in the run
            used = (row.example for row in look.rows if sure and is_used(row.example, source))
            named["corpus" if role == "corpus" else "adaptation"] += [e.example_id for e in used]
            if not problems and not no_backbone and "backbone" not in unsound:
                problems = _caught(check_cut, look, source, config, notes, untold)
            if problems:
                spoilt.add(role)
            else:
                sound.append(look)
            found += [_in_role(role, error) for error in problems]
            said = [*((tell, note) for note in notes), *((warn, note) for note in untold)]
            for teller, note in said:
                teller(f"{role} ({', '.join(source.paths)}): {note}")
    if not spoilt and config.decontamination.enabled and config.decontamination.copies:
        found += _caught(check_common, uris["corpus"], uris["adaptation"] | uris["heldout"], warn)
    twice = _caught(check_twice, uris["adaptation"], uris["heldout"])
    found += twice
    given = {} if "embedding" in unsound else config.embedding.vectors.given
    found += check_vectors(given, named)
    if not no_backbone and not {"backbone", "scoring", "surrogate"} & set(unsound):
        found += _smaller_problems(config, sound, warn)
    found += _metric_problems(config, spoilt, asked)
    found += [] if "evaluation" in unsound else _task_problems(config)
    if not twice and not spoilt & {"adaptation", "heldout", "split", "seed"}:
        found += _caught(check_split, config)
    return found


def _library_problems(config: RunConfig, unsound: Collection[str]) -> list[AlbatError]:
    """Return which libraries are missing that any backbone would need."""
    sections = [name for name in ("finetune", "surrogate") if name not in unsound]
    optimizers = [_caught(check_optimizer, getattr(config, name), name) for name in sections]
    return [*_caught(load_faiss), *(error for found in optimizers for error in found)]


def _device_problems(runtime: Runtime) -> list[AlbatError]:
    """Return what is wrong with how many devices are asked for; those of a cluster are not here."""
    return [] if runtime.cluster else _caught(check_device_count, runtime)


def _output_problems(config: RunConfig, trackers: Sequence[str]) -> list[AlbatError]:
    """Return why results cannot be written, or not be shown by a tracker."""
    found = _caught(storage.check_writable, config.output)
    for name in trackers:
        found += _caught(check_tracker, name, config.output)
    return found


def _runner_problems(runtime: Runtime) -> list[AlbatError]:
    if runtime.runner == "threads" and not runtime.cluster:
        return []
    from flows.running.runners import check_runner  # not for most: Prefect takes a second to import

    return _caught(check_runner, runtime)


def _demands(config: RunConfig, unsound: Collection[str], warn: Tell) -> list[AlbatError]:
    """Return what is asked of a sound backbone that it cannot do; warn of what it does badly."""
    found: list[AlbatError] = []
    sections = [name for name in ("finetune", "surrogate") if name not in unsound]
    adapters = {getattr(config, name).adapter: name for name in sections}  # often the same
    for adapter, section in adapters.items():
        problems = _caught(check_adapter, config.backbone, adapter)
        problems += _caught(check_sharing, config.backbone, adapter, config.runtime)
        found += [_in_role(section, error) for error in problems]
    for section in sections:
        if getattr(config, section).packing:
            problems = _caught(check_packing, config.backbone)
            found += [_in_role(f"{section}.packing", error) for error in problems]
    asked = {"samples": config.samples.all_prompts, "generated": config.generated.prompts}
    for section, prompts in asked.items():
        if prompts and section not in unsound:
            problems = _caught(check_prompts, config.backbone, prompts)
            found += [_in_role(section, error) for error in problems]
    if "generated" not in unsound and config.generated.begins_chats:
        found += [_in_role("generated", e) for e in _caught(check_chat, config.backbone)]
    for note in _ill_suited(config, unsound):
        warn(note)
    return found


def _odd_prompts(config: RunConfig) -> Iterator[str]:
    """Yield what is told of prompts that hardly say what was meant."""
    braced = [prompt for prompt in config.samples.prompts if "{" in prompt]
    if braced:
        yield f"samples.prompts: {braced[0]!r} reaches the backbone as it is: write the word itself"
    if config.samples.subject is not None and not config.samples.dreambooth:
        yield "samples.subject: it stands in the prompts of samples.dreambooth, which is not set"


def _ill_suited(config: RunConfig, unsound: Collection[str]) -> Iterator[str]:
    """Yield what is told of settings that a sound backbone takes, but does not go well with."""
    bare = "generated" not in unsound and config.generated.begins_bare
    if bare and not _caught(check_chat, config.backbone):
        yield (
            "generated.freely: the backbone has a chat template, without which an instruct model "
            "writes little of what it was trained on: `freely: chat` begins by it"
        )
    if (told := kind_of(config.backbone).ill_suited(config.backbone)) is not None:
        yield told
    if "samples" not in unsound and kind_of(config.backbone).draws_pictures:
        yield from _odd_prompts(config)
    copies = config.decontamination
    compared = copies.enabled and copies.similarity is not None
    if compared and not config.embeds_corpus and not {"retrieval", "decontamination"} & {*unsound}:
        yield (
            "retrieval.pool corpus: no row is embedded, so by its words alone it is told what "
            "copies held-out rows, and decontamination.similarity is not looked at"
        )
    local = "runtime" not in unsound and not config.runtime.cluster
    if local and config.backbone.dtype == "bfloat16" and _emulates_bfloat16(config.runtime):
        yield (
            "backbone.dtype: bfloat16, which this device has no instructions for: float32 is many "
            "times as fast on it, and `auto` takes bfloat16 where there are some"
        )
    usual = FinetuneConfig().learning_rate
    sections = [name for name in ("surrogate", "finetune") if name not in unsound]
    default = [name for name in sections if getattr(config, name).learning_rate == usual]
    finding = [name for name in default if getattr(config, name).optimizer == "prodigy"]
    if finding:
        yield (
            f"{' and '.join(f'{name}.learning_rate' for name in finding)}: at the default "
            f"{usual:g}, of which prodigy makes a factor of the rate that it finds: 1 is usual"
        )
    for name in sections:
        its = getattr(config, name)
        if its.epochs is None and its.steps <= its.warmup:
            yield (
                f"{name}.warmup: {its.warmup} of {its.steps} steps, so that the learning rate "
                f"never stays at its {its.learning_rate:g}: lower it"
            )
    drawing = [name for name in sections if getattr(config, name).sample_every]
    if drawing and config.runtime.training_devices > 1:
        yield f"{drawing[0]}.sample_every: nothing is drawn on the way by several training devices"
    high = [name for name in default if name not in finding]
    weights = weights_of(config.backbone) / 1e6
    if high and weights > _MILLIONS:
        yield (
            f"{' and '.join(f'{name}.learning_rate' for name in high)}: at the default {usual:g}, "
            f"which suits small models; the backbone has {weights:,.0f} million weights, and for "
            "LoRA on models of billions 1e-4 to 2e-4 is usual"
        )


def _emulates_bfloat16(runtime: Runtime) -> bool:
    return not _caught(resolve_device, runtime) and not computes_bfloat16(resolve_device(runtime))


def _embedder_problems(
    config: RunConfig, unsound: Collection[str], *, sound: bool
) -> list[AlbatError]:
    """Return what is wrong with what embeds rows, and with the encoders that compare samples.

    Args:
        config: of the run.
        unsound: its sections that are not to be looked at.
        sound: whether there is a backbone whose layers can be counted.
    """
    from albat_core.backbones.vision import check_encoder

    found: list[AlbatError] = []
    if not {"backbone", "embedding"} & set(unsound) and (sound or not config.embedding.layers):
        problems = _caught(check_embedder, config.backbone, config.embedding)
        named = config.embedding.encoder is not None  # else an error names the setting itself
        found += [_in_role("embedding.encoder", e) for e in problems] if named else problems
    compared = {"dino": config.samples.dino, "clip": config.samples.clip}
    for name, encoder in compared.items():
        if encoder is not None and "samples" not in unsound:
            problems = _caught(check_encoder, encoder, both=name == "clip")
            found += [_in_role(f"samples.{name}", error) for error in problems]
    return found


def _smaller_problems(config: RunConfig, looks: Sequence[Look], warn: Tell) -> list[AlbatError]:
    """Return why a smaller backbone cannot score in place of a sound one; warn where it is none."""
    if not config.scoring.by_smaller:
        return []
    smaller = config.scoring.smaller.of(config.backbone)
    anywhere = config.runtime.model_copy(update={"device": "auto"})
    found = (
        _caught(check_smaller, config.backbone, smaller)
        or _caught(check_backbone, smaller, anywhere)
        or _caught(_check_read_alike, config, looks)
        or _caught(check_adapter, smaller, config.surrogate.adapter)
    )
    if not found and weights_of(smaller) >= weights_of(config.backbone):
        warn("scoring.smaller: it has as many weights as the backbone, so nothing is saved by it")
    return [_in_role("scoring.smaller", error) for error in found]


def _check_read_alike(config: RunConfig, looks: Sequence[Look]) -> None:
    """Look whether a smaller backbone reads the first rows of each source as the backbone does."""
    split = open_splitter(config.backbone).pieces
    rows = [piece for look in looks for row in look.rows[:_READ] for piece in split(row.whole())]
    check_smaller(config.backbone, config.scoring.smaller.of(config.backbone), rows)


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


def _metric_problems(
    config: RunConfig, spoilt: Collection[str], asked: Sequence[Look]
) -> list[AlbatError]:
    """Return what is wrong with the metrics, or with the rows whose answers they compare."""
    metrics = () if "evaluation" in spoilt else config.evaluation.metrics
    found = [error for name in metrics for error in _caught(try_metric, name, asked)]
    if metrics and not {"adaptation", "heldout"} & set(spoilt):
        found += _caught(check_asked, asked)
    return found


def _task_problems(config: RunConfig) -> list[AlbatError]:
    """Return what is wrong with the tasks of lm-eval."""
    its = config.evaluation
    missing = _caught(check_library) if its.tasks else []
    return missing or [e for n in its.tasks for e in _caught(check_task, n, its.trust_remote_code)]
