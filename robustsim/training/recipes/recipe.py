"""Recipes: everything that decides what a training does, as data that is checked before anything runs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from robustsim.attacks import ThreatModel, parse_eps
from robustsim.attacks.engine.region import Norm
from robustsim.encoders.card import did_you_mean
from robustsim.images.preprocessing import Mode
from robustsim.training.methods.table import METHODS, Method

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
#: At least 0 and below 1.
Fraction = Annotated[float, Field(ge=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodSection(_Section):
    """Which method, and those of its options that differ from the papers'; see :mod:`robustsim.training.methods.table`.

    Attributes:
        name: one of the methods.
        alpha: weight of the method's second term.
        beta: weight of its third.
        clean_weight: share of the clean loss in FARE and TeCoA: ``(1 - w) adversarial + w clean``.
        trades: FARE and TeCoA in the manner of TRADES, with this weight on the steadiness; 0 for the plain method.
        rank: FARE's weight on the order of two distortions of an image: under attack, too, the weaker one should be
            nearer to it (:func:`robustsim.training.methods.losses.order`).
        prompt: the text of a class, ``{}`` its name.
        negative_prompt: the text of what a picture is not of.
        scale: inverse temperature of the logits.
    """

    name: str
    alpha: Weight | None = None
    beta: Weight | None = None
    clean_weight: Share | None = None
    trades: Weight | None = None
    rank: Weight | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    scale: Positive | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            hint = did_you_mean(name, list(METHODS)) or ";"
            raise ValueError(f"no method is called {name!r}{hint} there are {', '.join(METHODS)}")
        return name

    @field_validator("alpha", "beta", "clean_weight", "trades", "rank", "prompt", "negative_prompt", "scale")
    @classmethod
    def _of_this_method(cls, value: Any, info: ValidationInfo) -> Any:
        method = METHODS.get(info.data.get("name", ""))
        if value is not None and method is not None and info.field_name not in method.options:
            raise ValueError(f"{info.data['name']} has no such option; its options are {', '.join(method.options)}")
        return value

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _has_a_place(cls, text: str | None) -> str | None:
        if text is not None and text.count("{}") != 1:
            raise ValueError(f"{text!r} must hold {{}} once, where the name of the class goes")
        return text

    @model_validator(mode="after")
    def _fits(self) -> "MethodSection":
        if self.clean_weight and self.trades:
            raise ValueError("clean_weight and trades are two ways to the same end: set one of them")
        if self.rank and (self.clean_weight or self.trades):
            raise ValueError("rank goes with the plain loss: leave clean_weight and trades out")
        return self

    @property
    def method(self) -> Method:
        """The method itself."""
        return METHODS[self.name]

    @property
    def title(self) -> str:
        """What cards call it."""
        return f"{self.method.title}, order of distortions" if self.rank else self.method.title

    @property
    def options(self) -> dict[str, Any]:
        """All of the method's options with their values."""
        return {**self.method.options, **self.model_dump(exclude={"name"}, exclude_none=True)}


class AttackSection(_Section):
    """The inner attack: projected gradient ascent from a random point.

    Attributes:
        norm: ``linf``, ``l2`` or ``l1``.
        eps: the radius in units of pixels: a number, or text such as ``4/255``.
        steps: gradients.
        step_size: length of a step, written likewise; 2.5 eps / steps if not given.
        momentum: of the steps, in [0, 1).
        warmup: share of the training over which the radius, and the length of a step with it, grows from 0. A small
            encoder may collapse where it meets the full radius at once.
    """

    norm: Norm = "linf"
    eps: Weight
    steps: Count = 10
    step_size: Weight | None = None
    momentum: Fraction = 0.0
    warmup: Share = 0.0

    @field_validator("eps", "step_size", mode="before")
    @classmethod
    def _as_people_write_it(cls, value: Any, info: ValidationInfo) -> Any:
        return parse_eps(value, info.data.get("norm", "linf")) if isinstance(value, str) else value

    @field_validator("eps", "step_size")
    @classmethod
    def _in_the_range_of_pixels(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None:
            ThreatModel(info.data.get("norm", "linf"), value)  # refuses 4 where 4/255 is meant
        return value


class OptimizerSection(_Section):
    """How weights follow their gradients.

    Attributes:
        name: ``adamw``, ``adam`` or ``sgd``.
        lr: the learning rate after the warm-up.
        relative: ``lr`` is a share of each tensor's own size, the root mean square of its values when the run begins,
            as in Adafactor. For weights of very different sizes, such as those that batch norms were folded into: one
            rate for all would hardly move the first layers and shake the last.
        weight_decay: of all parameters.
        betas: of Adam.
        momentum: of SGD.
        schedule: ``cosine`` lets the rate fall to 0 along half a cosine, ``constant`` keeps it.
        warmup_steps: steps over which the rate grows linearly.
        clip_norm: gradients of a greater norm are shortened to this one.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive
    relative: bool = False
    weight_decay: Weight = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    momentum: Fraction = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    clip_norm: Positive | None = None


class AugmentSection(_Section):
    """What becomes of a training image on its way into the encoder.

    Attributes:
        crop: least and greatest share of the area of a random crop; without it, the card's own preprocessing.
        ratio: greatest aspect ratio of a crop, and the inverse of the least.
        flip: mirror half of the images.
        jitter: change brightness, contrast and saturation by a random factor from ``1 - jitter`` to ``1 + jitter``, and
            turn hues by up to a quarter of ``jitter`` of the circle.
        mixup: share of the images that are blended with another one, by a weight from 0 to 1 (Zhang et al. 2018). Where
            the frozen encoder says what is right, any picture will do, and this makes more of few (Beyer et al. 2022).
            Only for methods without labels.
    """

    crop: tuple[Positive, Positive] | None = None
    ratio: Annotated[float, Field(ge=1)] = 4 / 3
    flip: bool = False
    jitter: Share = 0.0
    mixup: Share = 0.0

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and not crop[0] <= crop[1] <= 1:
            raise ValueError(f"it must be the least and the greatest share of the area, at most 1, not {list(crop)}")
        return crop


class Stage(_Section):
    """From which share of the training on images have another size.

    Attributes:
        at: share of the training that is over, in [0, 1).
        size: side of the images, in pixels.
    """

    at: Fraction
    size: Annotated[int, Field(ge=8)]


class ValidationSection(_Section):
    """Judgements in the course of the training, on images that it does not train on.

    Attributes:
        every: steps between them; 0 for none but at the end.
        images: how many are held out; of data that are given for this, how many are drawn, 0 for all.
        steps: of the attack, which has the training's final radius.
    """

    every: Annotated[int, Field(ge=0)] = 500
    images: Annotated[int, Field(ge=0)] = 128
    steps: Count = 10


class CheckpointSection(_Section):
    """When the state is written, so that a run that was stopped goes on where it was.

    Attributes:
        every: steps between checkpoints; None for time alone.
        minutes: between checkpoints.
        keep: how many are kept, the newest.
    """

    every: Count | None = None
    minutes: Positive = 10.0
    keep: Count = 2


class AdapterSection(_Section):
    """What is trained on human judgements.

    Attributes:
        name: ``lora`` for low-rank adapters in the trunk, ``mlp`` for a residual block on top of the frozen encoder.
        r: rank of the adapters.
        alpha: their scale, times r.
        dropout: of what goes into them.
        targets: the modules that get one, by name; those usual for the architecture if not given.
        hidden: width of the MLP.
    """

    name: Literal["lora", "mlp"]
    r: Count = 16
    alpha: Positive = 0.5
    dropout: Fraction = 0.3
    targets: tuple[str, ...] | None = None
    hidden: Count = 512


class _Recipe(_Section):
    """What every recipe says.

    Attributes:
        name: of the recipe.
        base: the recipe that this one changes.
        description: in words.
        encoder: what is trained: a name of the catalogue, a Hub id or a folder.
        title: the name of the result's card.
        optimizer: see :class:`OptimizerSection`.
        steps: updates of the weights; give either this or ``epochs``.
        epochs: passes through the data.
        batch_size: images, or triplets, in one update, over all processes.
        accumulate: parts in which each process goes through its share of a batch.
        precision: ``fp32``, or ``bf16`` for automatic mixed precision.
        compile: run the encoder through ``torch.compile``.
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
        kind: ``adversarial``.
        original: what the losses compare with; ``encoder`` itself if not given. A training that goes on from an earlier
            one's result names here what that began as.
        method: see :class:`MethodSection`; a name alone will do.
        attack: see :class:`AttackSection`.
        augment: see :class:`AugmentSection`.
        stages: other image sizes in the course of the training; the card's own throughout if there are none.
    """

    kind: Literal["adversarial"] = "adversarial"
    original: str | None = None
    method: MethodSection
    attack: AttackSection
    augment: AugmentSection = AugmentSection()
    stages: tuple[Stage, ...] = ()

    @field_validator("method", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

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
        """The side of the images in a step of ``total``; ``usual`` where there are no stages."""
        done = step / total
        return next((stage.size for stage in reversed(self.stages) if stage.at <= done), usual)

    def eps_at(self, step: int, total: int) -> float:
        """The attack's radius in a step of ``total``."""
        grown = 1.0 if not self.attack.warmup else min(1.0, (step + 1) / (self.attack.warmup * total))
        return self.attack.eps * grown


class FinetuneRecipe(_Recipe):
    """Perceptual fine-tuning on human judgements; what every recipe has, and these.

    Attributes:
        kind: ``2afc``.
        adapter: see :class:`AdapterSection`.
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
