"""Samples: what an arm made of the prompts."""

from albat_core.records.examples import EXAMPLE_SCHEMA, Example, table_to_examples
from albat_core.records.tables import read_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

STAGE = "samples"
SAMPLES = "samples.parquet"


def read_samples(store: ArtifactStore, samples: ArtifactRef) -> list[tuple[str, list[Example]]]:
    """Return each prompt with what was made of it, in order."""
    facts = store.manifest(samples).facts
    table = read_table(store.folder(samples) / SAMPLES, EXAMPLE_SCHEMA.names)
    examples = table_to_examples(table)
    each = facts["per_prompt"]
    return [
        (prompt, examples[n * each : (n + 1) * each]) for n, prompt in enumerate(facts["prompts"])
    ]
