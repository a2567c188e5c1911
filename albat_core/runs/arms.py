"""Arms of a run: each trained on a mixture of its own, evaluated, asked and sampled from."""

from collections.abc import Callable, Sequence
from functools import cached_property

from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.measures.lm_eval import task_title
from albat_core.measures.metrics import metric_title
from albat_core.records.runs import (
    ADAPTATION_ONLY,
    ALBAT,
    ALL_DATA,
    GENERATED,
    LABELS,
    UNTOUCHED,
    ArmRun,
)
from albat_core.records.splits import TRAIN
from albat_core.runs.config import RunConfig
from albat_core.runs.inputs import Inputs
from albat_core.runs.steps import Step, Steps
from albat_core.stages.answer import answer_prompts
from albat_core.stages.evaluate import evaluate
from albat_core.stages.examine import examine
from albat_core.stages.fidelity import measure_fidelity
from albat_core.stages.finetune import finetune
from albat_core.stages.grade import grade_answers
from albat_core.stages.mix import write_mixture
from albat_core.stages.redraw import redraw_heldout
from albat_core.stages.sample import draw_samples
from albat_core.store.artifacts import ArtifactRef
from albat_core.training.config import FinetuneConfig, in_steps, stretched

_DRAWN = 4  # prompts of which samples are drawn while an adapter is trained


class Arms:
    """The arms that are compared, by name; asking for an arm's result computes what it needs.

    Args:
        config: of the run.
        steps: what stages are submitted to.
        inputs: of the run.
        added: gives the weighted rows that an arm adds and their mixing weight.
    """

    def __init__(
        self,
        config: RunConfig,
        steps: Steps,
        inputs: Inputs,
        added: Callable[[str], tuple[ArtifactRef, float] | None],
    ) -> None:
        self._config = config
        self._steps = steps
        self._inputs = inputs
        self._added = added

    @property
    def names(self) -> Sequence[str]:
        """The arms in order."""
        return (UNTOUCHED, *self._config.baselines, ALBAT)

    def mixture(self, arm: str) -> ArtifactRef:
        """Return the weighted rows of an arm."""
        return self._mixture(arm, self._inputs.trained_on(arm))

    def trained_mixture(self, arm: str) -> ArtifactRef:
        """Return the weighted rows that an arm's adapter was trained on in the end."""
        return self.mixture(ADAPTATION_ONLY if arm == ALBAT and self._falls_back else arm)

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

    def answers(self, arm: str) -> ArtifactRef | None:
        """Return what an arm wrote to held-out prompts; none where no metrics are configured."""
        if not self._config.evaluation.metrics:
            return None
        return self._steps.results([self._answering(arm)])[0]

    def grades(self, arm: str) -> tuple[ArtifactRef, ...]:
        """Return what each metric says of an arm's answers, then what each task of lm-eval does."""
        c, answers = self._config, self.answers(arm)
        grading = (
            []
            if answers is None
            else [
                self._steps.submit(
                    f"grade: {LABELS[arm]}, {metric_title(name)}",
                    grade_answers,
                    answers=answers,
                    metric=name,
                    runtime=c.runtime,
                    label=f"{LABELS[arm]}, {metric_title(name)}",
                )
                for name in c.evaluation.metrics
            ]
        )
        return tuple(self._steps.results([*grading, *self._examining(arm)]))

    @cached_property
    def runs(self) -> list[ArmRun]:
        """Every arm, trained and evaluated; what needs nothing of each other runs side by side."""
        trained = [arm for arm in self.names if arm != UNTOUCHED]
        self._steps.results([self._looking(arm) for arm in trained])
        self._steps.results([self._training(arm) for arm in trained])
        tried = [self._evaluating(arm) for arm in self.names]
        if self._config.samples.all_prompts:
            tried += [self._sampling(arm) for arm in self.names]
        if self._config.evaluation.metrics:
            tried += [self._answering(arm) for arm in self.names]
        tried += [step for arm in self.names for step in self._examining(arm)]
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
                answers=self.answers(arm),
                grades=self.grades(arm),
                redrawn=self.redrawn(arm),
            )
            for arm in self.names
        ]

    def _mixture(self, arm: str, split: ArtifactRef, note: str = "") -> ArtifactRef:
        """Return a split's training rows with those that an arm adds."""
        rows, alpha = self._rows(arm)
        return mix(self._steps, self._config, LABELS[arm] + note, split, rows, alpha)

    def _looking(self, arm: str) -> Step[ArtifactRef]:
        """Train an arm with a look at validation documents, which find its best step."""
        note = ", best step" if self._config.refit else ""
        return self._train(arm, self._inputs.looked_at(arm), note)

    def _training(self, arm: str) -> Step[ArtifactRef]:
        """Train an arm as it is compared: on all of its documents, for as many steps."""
        if arm == ALBAT and self._falls_back:
            return self._training(ADAPTATION_ONLY)
        looked = self._looking(arm)
        if not self._config.refit:
            return looked
        like = self._steps.results([looked])[0]
        return self._train(arm, self._inputs.trained_on(arm), like=like)

    @cached_property
    def _falls_back(self) -> bool:
        """Whether validation documents are predicted no better with ALBAT's mixture."""
        if not self._config.mixture.fall_back:
            return False
        looked = self._steps.results([self._looking(arm) for arm in (ADAPTATION_ONLY, ALBAT)])
        manifests = map(self._steps.manifest, looked)
        without, mixed = (its.facts["validation_loss"] for its in manifests)
        return bool(mixed >= without)

    def _settings(self, arm: str) -> FinetuneConfig:
        """Return how an arm is trained: on a mixture longer, where adaptation data needs that."""
        config = self._config.finetune
        _, alpha = self._rows(arm)
        if not alpha or config.stretch == 1:
            return config
        alone = self._steps.manifest(self._steps.results([self._looking(ADAPTATION_ONLY)])[0])
        return stretched(config, alone.facts["best_step"] / alone.config["steps"], alpha)

    def _rows(self, arm: str) -> tuple[ArtifactRef | None, float]:
        """Return the weighted rows that an arm adds and their mixing weight; None, 0 for none."""
        rows, alpha = self._added(arm) or (None, 0.0)
        return (rows, alpha) if alpha else (None, 0.0)

    def _train(
        self, arm: str, split: ArtifactRef, note: str = "", like: ArtifactRef | None = None
    ) -> Step[ArtifactRef]:
        encodings = []
        if arm not in (ADAPTATION_ONLY, ALL_DATA):
            generated = arm == GENERATED
            inputs = self._inputs
            encodings = inputs.generated_encodings if generated else inputs.corpus_encodings
        return train(
            self._steps,
            self._config,
            self._inputs,
            LABELS[arm] + note,
            self._settings(arm),
            mixture=self._mixture(arm, split, note),
            split=split,
            encodings=encodings,
            like=like,
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

    def _answering(self, arm: str) -> Step[ArtifactRef]:
        c, its = self._config, self._config.evaluation
        return self._steps.submit(
            f"answer: {LABELS[arm]}",
            answer_prompts,
            adapter=self.adapter(arm),
            adaptation=self._inputs.adaptation,
            backbone_config=c.backbone,
            sampling=SamplingConfig(max_new_tokens=its.max_new_tokens, temperature=its.temperature),
            rows=its.answers,
            batch_tokens=its.batch_tokens,
            seed=c.seed,
            runtime=c.runtime,
            label=LABELS[arm],
        )

    def _examining(self, arm: str) -> list[Step[ArtifactRef]]:
        """Have an arm take each of the tasks of lm-eval."""
        c, its = self._config, self._config.evaluation
        return [
            self._steps.submit(
                f"examine: {LABELS[arm]}, {task_title(task)}",
                examine,
                adapter=self.adapter(arm),
                task=task,
                backbone_config=c.backbone,
                limit=its.task_limit,
                fewshot=its.fewshot,
                batch=its.task_batch,
                trust_remote_code=its.trust_remote_code,
                runtime=c.runtime,
                label=f"{LABELS[arm]}, {task_title(task)}",
            )
            for task in its.tasks
        ]

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


def mix(
    steps: Steps,
    run: RunConfig,
    label: str,
    split: ArtifactRef,
    selection: ArtifactRef | None = None,
    alpha: float = 0.0,
) -> ArtifactRef:
    """Write a mixture of a split's training rows and, where any are given, weighted corpus rows.

    Args:
        steps: what it is submitted to.
        run: whose settings.
        label: names the mixture.
        split: whose training rows.
        selection: weighted rows.
        alpha: their mixing weight, in [0, 1).
    """
    return steps.run(
        f"write mixture: {label}",
        write_mixture,
        adaptation=split,
        selection=selection,
        alpha=alpha,
        config=run.mixture,
        runtime=run.runtime,
        label=label,
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
    like: ArtifactRef | None = None,
    backbone: BackboneConfig | None = None,
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
        like: an adapter at whose best step it ends.
        backbone: what is adapted; None: the run's.
    """
    rows = steps.manifest(split).facts[TRAIN]["rows"]
    return steps.submit(
        f"fine-tune: {label}",
        finetune,
        mixture=mixture,
        adaptation=split,
        encodings=[*inputs.own_encodings, *encodings],
        backbone_config=backbone or run.backbone,
        config=in_steps(config, rows),
        seed=run.seed,
        runtime=run.runtime,
        label=label,
        start=start,
        like=like,
        tracking=run.tracked,
        prompts=run.samples.all_prompts[:_DRAWN] if config.sample_every else (),
        sampling=run.samples.sampling,
    )
