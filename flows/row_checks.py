"""What is looked at in the rows of a run's sources, before anything is computed."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from albat_core.backbones import open_splitter, open_trap, row_limit
from albat_core.errors import InputError
from albat_core.measures.metrics import grade, metric_identity
from albat_core.records.answers import prompt_and_answer
from albat_core.records.examples import Example, example_content
from albat_core.runs.config import RunConfig
from albat_core.sources.checks import PICTURES_LOOKED_AT, Look
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_problems
from albat_core.sources.rows import is_used, read_rows
from albat_core.stages.answer import refuse_bare
from albat_core.stages.shard import overlong
from albat_core.stages.split import (
    assign_roles,
    refuse_common,
    refuse_no_test,
    refuse_repeated,
    same_contents,
)

Tell = Callable[[str], object]
_LETTERS_CUT = 200_000  # of a source, before anything is computed
_UNFIT = 100  # rows of which none can be used: nor will others
_GRADED = 3  # rows on which a metric is tried
_COMPARED = 1000  # rows of an adaptation set whose repetitions may leave too few for the split


def try_metric(name: str, looks: Sequence[Look]) -> None:
    """Score what the first rows have as answers, and an empty answer to each."""
    pairs = [prompt_and_answer(row.example) for look in looks for row in look.rows]
    some = [pair for pair in pairs if pair is not None][:_GRADED]
    if not some:
        metric_identity(name)
        return
    prompts, references = ([pair[n] for pair in some] * 2 for n in (0, 1))
    grade(name, references[: len(some)] + [""] * len(some), references, prompts)


def check_asked(looks: Sequence[Look]) -> None:
    """Look whether there are prompts to answer: all rows of a source are of one kind."""
    rows = [row for look in looks for row in look.rows]
    answerable = sum(prompt_and_answer(row.example) is not None for row in rows)
    if rows:
        refuse_bare(answerable, len(rows), "evaluation.metrics")


def check_cut(
    look: Look, source: SourceConfig, config: RunConfig, notes: list[str], untold: list[str]
) -> None:
    """Cut rows as the run will: chats need a template of the tokenizer's; add to the notes."""
    split, trap = open_splitter(config.backbone).pieces, open_trap(config.backbone)
    cut = unfit = tried = letters = 0
    traps: list[str] = []
    for row in look.rows:
        if letters > _LETTERS_CUT or (row.picture is not None and tried == PICTURES_LOOKED_AT):
            break
        tried += 1
        letters += len(row.example.text or "")
        try:
            example = row.whole()
            if example.text and len(example.text) > _LETTERS_CUT:  # a book is cut anyway
                example = replace(example, text=example.text[:_LETTERS_CUT])
            pieces = split(example)
        except InputError as error:
            if row.picture is None or source.on_damaged == "refuse":
                raise InputError(error.message, row.place, error.remedy) from error
            continue
        whole = [piece.example_id for piece in pieces] == [row.example.example_id]
        if not whole and source.overlong == "refuse":
            raise overlong(row, row_limit(config.backbone))
        unfit += not pieces
        cut += bool(pieces) and not whole
        traps += [told for piece in pieces[:1] if (told := trap(piece))]
    if traps:
        untold.append(f"of the first {tried} rows, in {len(traps)} {traps[0]}")
    limit = row_limit(config.backbone).amount if cut or unfit else ""
    if unfit == tried and tried >= min(len(look.rows), _UNFIT) > 0:
        raise InputError(
            f"expected rows with an answer, and room for it in {limit}; of the first {tried} rows "
            "none has that",
            where=", ".join(source.paths),
            remedy="raise backbone.max_length, or look whether prompts are followed by answers",
        )
    prompted, learnt = map(source.template_columns, ("prompt_template", "answer_template"))
    if copied := sorted({*prompted} & {*learnt}):
        untold.append(f"prompt and answer both have {copied[0]!r}: what is learnt is to copy it")
    if cut:
        notes.append(f"of the first {tried} rows, {cut} cut: over {limit}")
    if unfit:
        notes.append(
            f"of the first {tried} rows, {unfit} skipped: no answer to learn, or no room for one "
            f"in {limit}"
        )


def check_common(corpus: Collection[str], own: Collection[str], warn: Tell) -> None:
    """Look for files that are corpus and adaptation set, whose rows are left out as copies."""
    common = sorted(set(corpus) & set(own))
    if not common:
        return
    if len(common) == len(corpus):
        raise InputError(
            "expected rows that the adaptation set has not, all files of the corpus are its own",
            where=f"corpus: {common[0]}",
            remedy="name the backbone's own corpus; what both have is left out",
        )
    warn(f"corpus ({common[0]}): files of the adaptation set, left out as copies: {len(common)}")


def check_twice(own: Collection[str], heldout: Collection[str]) -> None:
    """Look for files that are adaptation set and held out at once."""
    if common := sorted(set(own) & set(heldout)):
        raise InputError(
            f"expected held-out documents that are not adapted to, {len(common)} of "
            f"{len(heldout)} files are in both sets",
            where=f"heldout: {common[0]}",
            remedy="leave heldout out, held-out documents must not be trained on: split.test holds "
            "some of the adaptation set out",
        )


def check_split(config: RunConfig) -> None:
    """Divide the adaptation documents as the run will."""
    own, other = (
        [(r.example_id, r.source, r.document, example_content(r)) for r in _rows(sources)]
        for sources in (config.adaptation, config.heldout)
    )
    refuse_repeated([row[:2] for row in own + other])
    test = 0.0 if config.heldout else config.split.test
    documents = [document for *_, document, _ in own]
    refuse_common(documents, [document for *_, document, _ in other])
    if 0 < len(own) + len(other) <= _COMPARED:  # of more, enough will be left
        *_, every, contents = zip(*other, *own, strict=True)
        same = same_contents(every, contents)
        held = {same[document] for *_, document, _ in other}
        documents = [same[name] for name in documents if same[name] not in held]
    assign_roles(documents, config.split.model_copy(update={"test": test}), config.seed)
    refuse_no_test(len(other) if config.heldout else test)


def _rows(sources: Sequence[SourceConfig]) -> Iterator[Example]:
    """Yield the rows that will be used; no file is digested."""
    for source in sources:
        for file in find_problems(source)[0]:
            yield from (row for row in read_rows(file) if is_used(row, source))
