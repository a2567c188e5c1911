"""Corpus and adaptation files to shards."""

from prefect import task
from prefect.cache_policies import NO_CACHE

from albat_core import corpus, input_files, shards
from albat_core.artifacts import ArtifactRef, ArtifactStore
from albat_core.backbones.base import BackboneConfig
from albat_core.corpus import ShardConfig
from albat_core.input_files import InputFile
from albat_core.shards import Part
from albat_core.sources import SourceConfig
from albat_core.stage import Runtime
from tasks.caching import stage_task


@task(name="find files", cache_policy=NO_CACHE, persist_result=False)
def find_files(configs: list[SourceConfig]) -> list[InputFile]:
    """List what there is to read, with fingerprints."""
    return [file for config in configs for file in input_files.find_files(config)]


@stage_task("cut", "cut {file.label}")
def make_shards(
    file: InputFile, backbone: BackboneConfig, config: ShardConfig, runtime: Runtime
) -> ArtifactRef:
    """Cut one file into shards of examples."""
    return corpus.make_shards(file, backbone, config, runtime)


@task(name="list parts", cache_policy=NO_CACHE, persist_result=False)
def list_parts(refs: list[ArtifactRef], runtime: Runtime) -> list[Part]:
    """List the parts of the corpus, after looking for ids that occur twice."""
    store = ArtifactStore(runtime.root)
    corpus.refuse_duplicates(store, refs)
    return shards.parts_of(store, refs)
