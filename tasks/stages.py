"""Every stage of the core as a task, with the name that its runs have, and where it computes."""

from collections.abc import Callable, Mapping
from typing import Any

from prefect import Task

from albat_core import (
    adaptation,
    corpus,
    dataset,
    decontamination,
    efficacy,
    efficacy_table,
    embedding,
    encoding,
    evaluation,
    fidelity,
    generation,
    index,
    input_files,
    mixing,
    mixture,
    proxy,
    registry,
    reselection,
    retrieval,
    samples,
    scoring,
)
from albat_core.devices import resolve_device
from albat_core.finetuning import adapter
from albat_core.report import writing
from albat_core.store.stage import Runtime
from tasks.caching import lift

GPU = "albat-gpu"
"""Tag of tasks that compute on a GPU: a concurrency limit on it holds them to one a device."""

_ON_DEVICE = {
    generation.generate_rows: lift(generation.generate_rows, "generate rows"),
    encoding.encode_part: lift(encoding.encode_part, "encode", "encode {label}"),
    proxy.measure_proxy: lift(proxy.measure_proxy, "measure the proxy"),
    embedding.embed_part: lift(embedding.embed_part, "embed", "embed {label}"),
    embedding.embed_queries: lift(embedding.embed_queries, "embed rows", "embed {label}"),
    index.build_index: lift(index.build_index, "index the corpus"),
    retrieval.retrieve_candidates: lift(retrieval.retrieve_candidates, "retrieve candidates"),
    retrieval.draw_candidates: lift(retrieval.draw_candidates, "draw random candidates"),
    scoring.score_candidates: lift(scoring.score_candidates, "score candidates"),
    mixing.estimate_mixing: lift(mixing.estimate_mixing, "estimate what it is worth"),
    adapter.finetune: lift(adapter.finetune, "fine-tune", "fine-tune: {label}"),
    evaluation.evaluate: lift(evaluation.evaluate, "evaluate", "evaluate: {label}"),
    efficacy.measure_situation: lift(
        efficacy.measure_situation, "measure", "measure {situation.name}, seed {seed}"
    ),
    samples.draw_samples: lift(samples.draw_samples, "sample", "sample: {label}"),
    fidelity.measure_fidelity: lift(fidelity.measure_fidelity, "measure", "measure: {label}"),
}
_ELSEWHERE = {
    input_files.find_files: lift(input_files.find_files, "find files"),
    corpus.make_shards: lift(corpus.make_shards, "cut", "cut {file.label}"),
    corpus.list_parts: lift(corpus.list_parts, "list parts"),
    adaptation.split_adaptation: lift(adaptation.split_adaptation, "split by document"),
    retrieval.take_candidates: lift(retrieval.take_candidates, "take generated rows"),
    decontamination.decontaminate: lift(decontamination.decontaminate, "leave out held-out rows"),
    mixture.select: lift(mixture.select, "select and weigh"),
    mixture.select_all: lift(mixture.select_all, "take all random candidates"),
    dataset.write_mixture: lift(dataset.write_mixture, "write mixture", "write mixture: {label}"),
    efficacy_table.tabulate: lift(efficacy_table.tabulate, "write the table"),
    writing.write_report: lift(writing.write_report, "write the report"),
    writing.export_run: lift(writing.export_run, "export"),
    reselection.compare_selections: lift(reselection.compare_selections, "compare selections"),
    reselection.export_changes: lift(reselection.export_changes, "export what changed"),
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
