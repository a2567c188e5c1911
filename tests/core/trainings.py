"""Trainings on the toy mixture, which may be stopped, for tests of the loop and what it keeps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from albat_core.errors import Interrupted
from albat_core.progress import Advance, Silent
from albat_core.records.runs import ALBAT
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.finetune import finetune
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.trackers import UNTRACKED, Tracking
from albat_core.training.config import FinetuneConfig

STEPS = FinetuneConfig(
    steps=20, batch_size=4, evaluate_every=5, warmup=2, learning_rate=0.02, adapter={"rank": 4}
)


class StopsAt(Silent):
    """A person who stops the training after so many steps, or examples evaluated; or a crash."""

    def __init__(self, count: int, of: str = "steps", error: type[Exception] = Interrupted) -> None:
        self.left = count
        self.of = of
        self.error = error

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        def advance(done: int) -> None:
            if unit == self.of:
                self.left -= done
                if self.left <= 0:
                    raise self.error("stopped")

        yield advance


class Training:
    """Trains on the toy mixture below a root of its own that shares the inputs."""

    def __init__(self, chain: Chain, run: RunConfig, root: Path) -> None:
        looked = Chain(run.model_copy(update={"refit": False}))  # validation rows not trained on
        self.mixture, self.adaptation = looked.arms.mixture(ALBAT), chain.inputs.adaptation
        self.backbone = run.backbone
        root.mkdir()
        for stage in ("mixture", "split"):
            (root / stage).symlink_to(Path(run.runtime.root) / stage)
        self.runtime = Runtime(root=str(root), device="cpu", checkpoint_seconds=1000)
        self.store = ArtifactStore(str(root))

    def run(
        self,
        config: FinetuneConfig = STEPS,
        seed: int = 0,
        like: ArtifactRef | None = None,
        tracking: Tracking = UNTRACKED,
    ) -> ArtifactRef:
        return finetune(
            self.mixture,
            self.adaptation,
            [],
            self.backbone,
            config,
            seed,
            self.runtime,
            like=like,
            tracking=tracking,
        )

    def weights(self, ref: ArtifactRef) -> dict[str, torch.Tensor]:
        return load_file(self.store.folder(ref) / "adapter_model.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
