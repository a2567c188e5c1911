"""Answers that an arm writes to the prompts of held-out rows."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import Answer, adapted
from albat_core.backbones.batches import each_batch
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.errors import InputError
from albat_core.progress import track
from albat_core.records.answers import ANSWER_SCHEMA, ANSWERS, STAGE, prompt_and_answer
from albat_core.records.examples import Example
from albat_core.records.splits import TEST, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.seeding import derive_seed, numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, given

STAGE_VERSION = 2


def answer_prompts(
    adapter: ArtifactRef | None,
    adaptation: ArtifactRef,
    backbone_config: BackboneConfig,
    sampling: SamplingConfig,
    rows: int,
    batch_tokens: int,
    seed: int,
    runtime: Runtime,
    label: str = "answer",
) -> ArtifactRef:
    """Have the backbone answer held-out prompts with an adapter (None: without).

    Args:
        adapter: of the arm.
        adaptation: the adaptation set, split.
        backbone_config: a language model's.
        sampling: tokens written at most, and the temperature; 0: the likeliest each time.
        rows: answered at most, >= 1; which of them is drawn by document, alike for all arms.
        batch_tokens: tokens in a batch, padding and answers included.
        seed: of the run.
        runtime: where to compute.
        label: names the progress line.

    Returns:
        an artifact of answers in the order of the held-out rows. Its facts count the rows without
        prompt and answer (``bare``), the answers of which only the beginning is compared
        (``begun``), and others that were cut at the most tokens (``cut``).

    Raises:
        BackboneError: the adapter was made for another backbone, or it writes no answers.
        InputError: no held-out row has prompt and answer.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        heldout = read_role(store, adaptation, TEST)
        answerable = asked_for(heldout)
        refuse_bare(len(answerable), len(heldout), str(adaptation))
        asked = drawn_by_document(answerable, rows, seed)
        seeds = [derive_seed(seed, STAGE, row.example_id) for row in asked]
        written: dict[int, Answer] = {}
        with (
            open_backbone(backbone_config, runtime) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
            track(label, len(asked), "answers") as advance,
        ):
            questions = backbone.questions(asked)
            lengths = [len(q.ids) + sampling.max_new_tokens for q in questions]

            def write(batch: list[int]) -> None:
                made = backbone.answer(
                    [questions[n] for n in batch], sampling, [seeds[n] for n in batch]
                )
                written.update(zip(batch, made, strict=True))
                advance(len(batch))

            each_batch(lengths, batch_tokens, write)
        answers = [written[n] for n in range(len(asked))]
        columns = [
            [row.example_id for row in asked],
            [row.document for row in asked],
            [q.prompt for q in questions],
            [q.reference for q in questions],
            [a.text for a in answers],
            [a.ended for a in answers],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, ANSWER_SCHEMA, strict=True)]
        write_table(pa.Table.from_arrays(arrays, schema=ANSWER_SCHEMA), folder / ANSWERS)
        facts = {
            "documents": len({row.document for row in asked}),
            "answerable": len(answerable),
            "bare": len(heldout) - len(answerable),
            "begun": sum(row.continues for row in asked),
            "cut": sum(
                not (answer.ended or row.continues)
                for answer, row in zip(answers, asked, strict=True)
            ),
        }
        return Built(rows=len(asked), facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        given(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            rows=rows,
            batch_tokens=batch_tokens,
            seed=seed,
        ),
        {
            "adapter": adapter.key if adapter else None,
            "heldout": role_digest(store, adaptation, TEST),
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )


def asked_for(rows: Sequence[Example]) -> list[Example]:
    """Return the rows with prompt and answer.

    Those whose answer did not fit whole beside its prompt are among them where they are most: of
    these the beginning is compared, and no more is written than it has tokens.
    """
    paired = [row for row in rows if prompt_and_answer(row) is not None]
    whole = [row for row in paired if not row.continues]
    return whole if 2 * len(whole) >= len(paired) else paired


def drawn_by_document(rows: Sequence[Example], most: int, seed: int) -> list[Example]:
    """Return some rows in their order, each document in turn giving one, so that many have a say.

    Args:
        rows: of all documents.
        most: rows returned at most.
        seed: of the named generator that draws the order of documents and rows.
    """
    before: Counter[str] = Counter()
    turns: list[tuple[int, int, int]] = []
    order = numpy_generator(seed, STAGE, "rows").permutation(len(rows))
    for place, number in enumerate(order.tolist()):
        turns.append((before[rows[number].document], place, number))
        before[rows[number].document] += 1
    return [rows[number] for number in sorted(number for *_, number in sorted(turns)[:most])]


def refuse_bare(answerable: int, rows: int, where: str) -> None:
    """Raise an InputError where no held-out row has prompt and answer.

    Args:
        answerable: rows that have.
        rows: in all.
        where: they come from.
    """
    if not answerable:
        raise InputError(
            f"expected held-out rows with prompt and answer for evaluation.metrics, got {rows:,} "
            "of plain text",
            where=where,
            remedy="give prompt_template and answer_template, or chats, or leave "
            "evaluation.metrics out",
        )
