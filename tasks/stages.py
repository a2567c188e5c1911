"""Every stage of the core as a task, with the name that its runs have, and where it computes."""

from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task

from albat_core.benchmark import arms, calibration, table
from albat_core.devices import resolve_device
from albat_core.runs import registry
from albat_core.sources import files, vectors
from albat_core.stages import (
    adopt,
    agree,
    answer,
    compare,
    decontaminate,
    embed,
    encode,
    estimate,
    evaluate,
    examine,
    fidelity,
    finetune,
    generate,
    grade,
    index,
    mix,
    prefilter,
    proxy,
    redraw,
    report,
    retrieve,
    sample,
    score,
    select,
    shard,
    space,
    split,
)
from albat_core.store.stage import Runtime
from tasks.caching import lift

GPU = "albat-gpu"
"""Tag of tasks that compute on a GPU: a concurrency limit on it holds them to one a device."""

_ON_DEVICE = {
    generate.generate_rows: lift(generate.generate_rows, "generate rows"),
    encode.encode_part: lift(encode.encode_part, "encode", "encode {label}"),
    proxy.measure_proxy: lift(proxy.measure_proxy, "measure the proxy"),
    embed.embed_part: lift(embed.embed_part, "embed", "embed {label}"),
    encode.find_encoded: lift(encode.find_encoded, "look for encodings"),
    embed.find_embedded: lift(embed.find_embedded, "look for embeddings"),
    embed.embed_queries: lift(embed.embed_queries, "embed rows", "embed {label}"),
    space.compare_spaces: lift(space.compare_spaces, "compare vectors with the encoder's"),
    index.learn_cells: lift(index.learn_cells, "learn cells"),
    index.code_rows: lift(index.code_rows, "code rows", "code {label}"),
    index.build_index: lift(index.build_index, "index the corpus"),
    retrieve.retrieve_candidates: lift(retrieve.retrieve_candidates, "retrieve candidates"),
    score.score_part: lift(score.score_part, "score", "score {label}"),
    score.score_candidates: lift(score.score_candidates, "score candidates"),
    estimate.take_gradients: lift(estimate.take_gradients, "gradients", "gradients: {label}"),
    estimate.estimate_worth: lift(estimate.estimate_worth, "estimate what it is worth"),
    finetune.finetune: lift(finetune.finetune, "fine-tune", "fine-tune: {label}"),
    evaluate.evaluate: lift(evaluate.evaluate, "evaluate", "evaluate: {label}"),
    answer.answer_prompts: lift(answer.answer_prompts, "answer", "answer: {label}"),
    examine.examine: lift(examine.examine, "examine", "examine: {label}"),
    arms.measure_situation: lift(
        arms.measure_situation, "measure", "measure {situation.name}, seed {seed}"
    ),
    calibration.calibrate: lift(
        calibration.calibrate, "calibrate", "calibrate {situation.name}, seed {seed}"
    ),
    sample.draw_samples: lift(sample.draw_samples, "sample", "sample: {label}"),
    redraw.redraw_heldout: lift(redraw.redraw_heldout, "redraw", "redraw: {label}"),
    fidelity.measure_fidelity: lift(fidelity.measure_fidelity, "measure", "measure: {label}"),
}
_ELSEWHERE = {
    index.find_index: lift(index.find_index, "look for an index"),
    files.find_files: lift(files.find_files, "find files"),
    vectors.find_vectors: lift(vectors.find_vectors, "find vectors"),
    adopt.keep_vectors: lift(adopt.keep_vectors, "read vectors", "read {file.name}"),
    adopt.match_vectors: lift(adopt.match_vectors, "match vectors by id"),
    adopt.adopt_part: lift(adopt.adopt_part, "take vectors", "take vectors of {label}"),
    adopt.find_adopted: lift(adopt.find_adopted, "look for vectors taken"),
    adopt.adopt_queries: lift(adopt.adopt_queries, "take vectors of adaptation rows"),
    shard.make_shards: lift(shard.make_shards, "cut", "cut {file.label}"),
    shard.find_shards: lift(shard.find_shards, "look for shards"),
    shard.list_parts: lift(shard.list_parts, "list parts"),
    split.split_adaptation: lift(split.split_adaptation, "split by document"),
    prefilter.prefilter: lift(prefilter.prefilter, "prefilter the corpus"),
    retrieve.draw_candidates: lift(retrieve.draw_candidates, "draw random candidates"),
    retrieve.take_candidates: lift(retrieve.take_candidates, "take all rows"),
    agree.draw_sample: lift(agree.draw_sample, "draw a sample of candidates"),
    agree.measure_agreement: lift(agree.measure_agreement, "compare with the smaller backbone"),
    decontaminate.decontaminate: lift(decontaminate.decontaminate, "leave out held-out rows"),
    select.select: lift(select.select, "select and weigh"),
    select.select_all: lift(select.select_all, "take all random candidates"),
    mix.write_mixture: lift(mix.write_mixture, "write mixture", "write mixture: {label}"),
    table.tabulate: lift(table.tabulate, "write the table"),
    calibration.tabulate_cases: lift(calibration.tabulate_cases, "write the table of calibration"),
    grade.grade_answers: lift(grade.grade_answers, "grade", "grade: {label}"),
    report.write_report: lift(report.write_report, "write the report"),
    report.export_run: lift(report.export_run, "export"),
    report.export_mixture: lift(report.export_mixture, "export the mixture"),
    report.track_run: lift(report.track_run, "track"),
    compare.compare_selections: lift(compare.compare_selections, "compare selections"),
    compare.export_changes: lift(compare.export_changes, "export what changed"),
    registry.register_adapter: lift(registry.register_adapter, "register the adapter"),
}

TASKS = _ON_DEVICE | _ELSEWHERE
"""Tasks by the function of the core that each lifts."""


def task_for(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Task[..., Any]:
    """Return a stage's task, tagged where it will compute on a GPU.

    Args:
        function: of the core.
        parameters: by name, what it will be given.
    """
    if function in _ON_DEVICE and _takes_gpu(_runtime(parameters)):
        return TASKS[function].with_options(tags={GPU})
    return TASKS[function]


def _runtime(parameters: Mapping[str, Any]) -> Runtime:
    if "runtime" in parameters:
        return parameters["runtime"]
    return parameters["situation"].run.runtime  # of a benchmark, whose configuration has several


def _takes_gpu(runtime: Runtime) -> bool:
    """Tell whether a task will compute on a GPU; of a cluster's machines the configuration says."""
    return runtime.device == "cuda" or resolve_device(runtime).type == "cuda"
