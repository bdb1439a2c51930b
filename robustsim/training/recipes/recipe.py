"""A recipe decides what a training does, as data that is checked before anything runs."""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from robustsim.images.preprocessing import Mode
from robustsim.training.recipes.sections import (
    AdapterSection,
    AttackSection,
    AugmentSection,
    CheckpointSection,
    Count,
    Fraction,
    MethodSection,
    OptimizerSection,
    Positive,
    PreprocessingSection,
    Section,
    Stage,
    ValidationSection,
)


class _Recipe(Section):
    """What every recipe says.

    Attributes:
        name: of the recipe.
        base: the recipe that this one changes.
        description: in words.
        encoder: what is trained: a name of the catalogue, a Hub id or a folder.
        title: the name of the result's card.
        optimizer: see `OptimizerSection`.
        steps: updates of the weights; give either this or `epochs`.
        epochs: passes through the data.
        batch_size: images, or triplets, in one update, over all processes.
        accumulate: parts in which each process goes through its share of a batch.
        precision: `fp32`, or `bf16` for automatic mixed precision.
        compile: run the encoder through `torch.compile`.
        ema: decay of an exponential moving average of the weights, which is then the result; None for the last ones.
        seed: of everything random.
        license: of the result's weights, SPDX.
        data: what the result's card says of the data, if not the name of the folder.
    """

    name: str = "recipe"
    base: str | None = None
    description: str = ""
    encoder: str
    title: str | None = None
    optimizer: OptimizerSection
    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count
    accumulate: Count = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    compile: bool = False
    ema: Fraction | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    license: str | None = None
    data: str | None = None
    validation: ValidationSection = ValidationSection()
    checkpoints: CheckpointSection = CheckpointSection()

    @model_validator(mode="after")
    def _one_length(self) -> "_Recipe":
        if (self.steps is None) == (self.epochs is None):
            seen = "neither is there" if self.steps is None else f"not both ({self.steps} and {self.epochs:g})"
            raise ValueError(f"set either steps or epochs: {seen}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be cut into {self.accumulate} equal parts: change accumulate"
            )
        return self

    def total_steps(self, samples: int) -> int:
        """Updates in all, for a data set of so many samples."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0) * samples / self.batch_size))


class TrainRecipe(_Recipe):
    """Adversarial fine-tuning of an encoder on images; what every recipe has, and these.

    Attributes:
        kind: `adversarial`.
        original: what the losses compare with; `encoder` itself if not given. A training that goes on from an earlier
            one's result names here what that began as.
        method: see `MethodSection`; a name alone will do.
        attack: see `AttackSection`.
        augment: see `AugmentSection`.
        preprocessing: see `PreprocessingSection`, a mode alone will do; the encoder's own if not given.
        stages: other image sizes in the course of the training; the card's own throughout if there are none.
    """

    kind: Literal["adversarial"] = "adversarial"
    original: str | None = None
    method: MethodSection
    attack: AttackSection
    augment: AugmentSection = AugmentSection()
    preprocessing: PreprocessingSection | None = None
    stages: tuple[Stage, ...] = ()

    @field_validator("method", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _by_mode(cls, value: Any) -> Any:
        return {"mode": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _labels_are_of_one_image(self) -> "TrainRecipe":
        if self.augment.mixup and self.method.method.labels:
            raise ValueError(
                f"augment.mixup blends images of two classes, and {self.method.name} wants one: set it to 0"
            )
        return self

    @field_validator("stages")
    @classmethod
    def _from_the_start(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        starts = [stage.at for stage in stages]
        if stages and (starts != sorted(set(starts)) or starts[0] != 0):
            raise ValueError(f"the first must begin at 0 and each later than the one before, these begin at {starts}")
        return stages

    def size_at(self, step: int, total: int, usual: int) -> int:
        """The side of the images in a step of `total`; `usual` where there are no stages."""
        done = step / total
        return next((stage.size for stage in reversed(self.stages) if stage.at <= done), usual)

    def eps_at(self, step: int, total: int) -> float:
        """The attack's radius in a step of `total`."""
        grown = 1.0 if not self.attack.warmup else min(1.0, (step + 1) / (self.attack.warmup * total))
        return self.attack.eps * grown


class FinetuneRecipe(_Recipe):
    """Perceptual fine-tuning on human judgements; what every recipe has, and these.

    Attributes:
        kind: `2afc`.
        adapter: see `AdapterSection`.
        margin: of the hinge loss.
        preprocessing: how pictures become squares; the encoder's own if not given.
    """

    kind: Literal["2afc"] = "2afc"
    adapter: AdapterSection
    margin: Positive = 0.05
    preprocessing: Mode | None = None

    @field_validator("adapter", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value
