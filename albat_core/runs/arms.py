"""Arms of a run: each trained on a mixture of its own, evaluated and sampled from."""

from collections.abc import Callable, Sequence
from functools import cached_property

from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, GENERATED, LABELS, UNTOUCHED, ArmRun
from albat_core.runs.config import RunConfig
from albat_core.runs.inputs import Inputs
from albat_core.runs.steps import Step, Steps
from albat_core.stages.evaluate import evaluate
from albat_core.stages.fidelity import measure_fidelity
from albat_core.stages.finetune import finetune
from albat_core.stages.redraw import redraw_heldout
from albat_core.stages.sample import draw_samples
from albat_core.store.artifacts import ArtifactRef
from albat_core.training.config import FinetuneConfig


class Arms:
    """The arms that are compared, by name; asking for an arm's result computes what it needs.

    Args:
        config: of the run.
        steps: what stages are submitted to.
        inputs: of the run.
        mixture: gives what an arm is trained on.
    """

    def __init__(
        self,
        config: RunConfig,
        steps: Steps,
        inputs: Inputs,
        mixture: Callable[[str], ArtifactRef],
    ) -> None:
        self._config = config
        self._steps = steps
        self._inputs = inputs
        self._mixture = mixture

    @property
    def names(self) -> Sequence[str]:
        """The arms in order."""
        return (UNTOUCHED, *self._config.baselines, ALBAT)

    def adapter(self, arm: str) -> ArtifactRef | None:
        """Return the adapter of an arm; none for the untouched backbone."""
        return None if arm == UNTOUCHED else self._steps.results([self._training(arm)])[0]

    def evaluation(self, arm: str) -> ArtifactRef:
        """Return the held-out losses of an arm."""
        return self._steps.results([self._evaluating(arm)])[0]

    def samples(self, arm: str) -> ArtifactRef | None:
        """Return what an arm made of the prompts; none where no prompts are configured."""
        if not self._config.samples.all_prompts:
            return None
        return self._steps.results([self._sampling(arm)])[0]

    def redrawn(self, arm: str) -> ArtifactRef | None:
        """Return held-out pictures as an arm draws them; none where none are to be drawn."""
        if not self._config.samples.heldout:
            return None
        return self._steps.results([self._redrawing(arm)])[0]

    def fidelity(self, arm: str) -> ArtifactRef | None:
        """Return how close an arm's samples are to subject and prompts, where that is measured."""
        c, samples = self._config, self.samples(arm)
        if samples is None or not c.samples.measured:
            return None
        return self._steps.run(
            f"measure: {LABELS[arm]}",
            measure_fidelity,
            samples=samples,
            adaptation=self._inputs.adaptation,
            seed=c.seed,
            runtime=c.runtime,
            label=LABELS[arm],
            dino=c.samples.dino,
            clip=c.samples.clip,
        )

    @cached_property
    def runs(self) -> list[ArmRun]:
        """Every arm, trained and evaluated; what needs nothing of each other runs side by side."""
        self._steps.results([self._training(arm) for arm in self.names if arm != UNTOUCHED])
        tried = [self._evaluating(arm) for arm in self.names]
        if self._config.samples.all_prompts:
            tried += [self._sampling(arm) for arm in self.names]
        if self._config.samples.heldout:
            tried += [self._redrawing(arm) for arm in self.names]
        self._steps.results(tried)
        return [
            ArmRun(
                name=arm,
                label=LABELS[arm],
                evaluation=self.evaluation(arm),
                adapter=self.adapter(arm),
                samples=self.samples(arm),
                fidelity=self.fidelity(arm),
                redrawn=self.redrawn(arm),
            )
            for arm in self.names
        ]

    def _training(self, arm: str) -> Step[ArtifactRef]:
        encodings = []
        if arm != ADAPTATION_ONLY:
            generated = arm == GENERATED
            inputs = self._inputs
            encodings = inputs.generated_encodings if generated else inputs.corpus_encodings
        return train(
            self._steps,
            self._config,
            self._inputs,
            LABELS[arm],
            self._config.finetune,
            mixture=self._mixture(arm),
            split=self._inputs.adaptation,
            encodings=encodings,
        )

    def _evaluating(self, arm: str) -> Step[ArtifactRef]:
        c = self._config
        return self._steps.submit(
            f"evaluate: {LABELS[arm]}",
            evaluate,
            adapter=self.adapter(arm),
            adaptation=self._inputs.adaptation,
            encodings=self._inputs.own_encodings,
            backbone_config=c.backbone,
            config=c.evaluation,
            runtime=c.runtime,
            label=LABELS[arm],
        )

    def _sampling(self, arm: str) -> Step[ArtifactRef]:
        c = self._config
        return self._steps.submit(
            f"sample: {LABELS[arm]}",
            draw_samples,
            adapter=self.adapter(arm),
            prompts=c.samples.all_prompts,
            backbone_config=c.backbone,
            config=c.samples,
            seed=c.seed,
            runtime=c.runtime,
            label=LABELS[arm],
        )

    def _redrawing(self, arm: str) -> Step[ArtifactRef]:
        c = self._config
        return self._steps.submit(
            f"redraw: {LABELS[arm]}",
            redraw_heldout,
            adapter=self.adapter(arm),
            adaptation=self._inputs.adaptation,
            backbone_config=c.backbone,
            sampling=c.samples.sampling,
            seed=c.seed,
            runtime=c.runtime,
            label=LABELS[arm],
            most=c.samples.heldout,
            per_prompt=c.samples.per_prompt,
        )


def train(
    steps: Steps,
    run: RunConfig,
    inputs: Inputs,
    label: str,
    config: FinetuneConfig,
    *,
    mixture: ArtifactRef,
    split: ArtifactRef,
    encodings: Sequence[ArtifactRef] = (),
    start: ArtifactRef | None = None,
) -> Step[ArtifactRef]:
    """Submit the training of an adapter.

    Args:
        steps: what it is submitted to.
        run: whose backbone and seed.
        inputs: of the run.
        label: names the adapter.
        config: how.
        mixture: what it is trained on.
        split: whose validation rows decide the best step.
        encodings: of the corpus rows in the mixture.
        start: an adapter to go on from.
    """
    return steps.submit(
        f"fine-tune: {label}",
        finetune,
        mixture=mixture,
        adaptation=split,
        encodings=[*inputs.own_encodings, *encodings],
        backbone_config=run.backbone,
        config=config,
        seed=run.seed,
        runtime=run.runtime,
        label=label,
        start=start,
    )
