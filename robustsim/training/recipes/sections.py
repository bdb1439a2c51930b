"""The parts of recipes: each decides one thing of a training, and is checked before anything runs."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from robustsim.attacks import ThreatModel, parse_eps
from robustsim.attacks.engine.region import Norm
from robustsim.encoders.attention import AttentionForm
from robustsim.encoders.card import did_you_mean
from robustsim.images.preprocessing import Interpolation, Mode, Preprocessing
from robustsim.training.methods.table import METHODS, Method

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
#: At least 0 and below 1.
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are refused, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class MethodSection(Section):
    """Which method, and those of its options that differ from the papers'; see `robustsim.training.methods.table`.

    Attributes:
        name: one of the methods.
        alpha: weight of the method's second term.
        beta: weight of its third.
        clean_weight: share of the clean loss in FARE and TeCoA: `(1 - w) adversarial + w clean`.
        trades: FARE and TeCoA in the manner of TRADES, with this weight on the steadiness; 0 for the plain method.
        rank: FARE's weight on the order of two distortions of an image: under attack, too, the weaker one should be
            nearer to it (`robustsim.training.methods.losses.order`).
        relations: FARE's weight on the similarities within a batch: under attack they should be those that the original
            sees between the clean images (`robustsim.training.methods.losses.relation_distance`). Of a batch that goes
            through in parts, or is shared by processes, within each part.
        prompt: the text of a class, `{}` its name.
        negative_prompt: the text of what a picture is not of.
        scale: inverse temperature of the logits.
        attention: `paper` or `published`, the formula of text-guided attention; see `text_guided_attention`.
    """

    name: str
    alpha: Weight | None = None
    beta: Weight | None = None
    clean_weight: Share | None = None
    trades: Weight | None = None
    rank: Weight | None = None
    relations: Weight | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    scale: Positive | None = None
    attention: AttentionForm | None = None

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            hint = did_you_mean(name, list(METHODS)) or ";"
            raise ValueError(f"no method is called {name!r}{hint} there are {', '.join(METHODS)}")
        return name

    @field_validator(
        "alpha",
        "beta",
        "clean_weight",
        "trades",
        "rank",
        "relations",
        "prompt",
        "negative_prompt",
        "scale",
        "attention",
    )
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
        added = {"order of distortions": self.rank, "relations": self.relations}
        return ", ".join([self.method.title, *(name for name, weight in added.items() if weight)])

    @property
    def options(self) -> dict[str, Any]:
        """All of the method's options with their values."""
        return {**self.method.options, **self.model_dump(exclude={"name"}, exclude_none=True)}


class AttackSection(Section):
    """The inner attack: projected gradient ascent from a random point.

    Attributes:
        norm: `linf`, `l2` or `l1`.
        eps: the radius in units of pixels: a number, or text such as `4/255`.
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


class OptimizerSection(Section):
    """How weights follow their gradients.

    Attributes:
        name: `adamw`, `adam` or `sgd`.
        lr: the learning rate after the warm-up.
        relative: `lr` is a share of each tensor's own size, the root mean square of its values when the run begins,
            as in Adafactor. For weights of very different sizes, such as those that batch norms were folded into: one
            rate for all would hardly move the first layers and shake the last.
        weight_decay: of all parameters.
        betas: of Adam.
        momentum: of SGD.
        schedule: `cosine` lets the rate fall to 0 along half a cosine, `constant` keeps it.
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


class AugmentSection(Section):
    """What becomes of a training image on its way into the encoder.

    Attributes:
        crop: least and greatest share of the area of a random crop; without it, the card's own preprocessing.
        ratio: greatest aspect ratio of a crop, and the inverse of the least.
        flip: mirror half of the images.
        jitter: change brightness, contrast and saturation by a random factor from `1 - jitter` to `1 + jitter`, and
            turn hues by up to a quarter of `jitter` of the circle.
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


class PreprocessingSection(Section):
    """How a picture becomes the encoder's square; the result's card says it, too.

    Attributes:
        mode: `shortest`, `squash` or `longest`; see `robustsim.images.Preprocessing`.
        crop: the share of the side (`squash`) or short side (`shortest`) that the square in the centre keeps: 0.875 for
            an encoder of 224 resizes to 256 first.
        interpolation: `bicubic` or `bilinear`.
    """

    mode: Mode
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Interpolation = "bicubic"

    @model_validator(mode="after")
    def _pads_or_crops(self) -> "PreprocessingSection":
        if self.mode == "longest" and self.crop < 1:
            raise ValueError("mode longest pads and crops nothing: leave crop out")
        return self

    def of(self, size: int) -> Preprocessing:
        """The preprocessing of an encoder of that side."""
        resize = None if self.crop == 1 else round(size / self.crop)
        return Preprocessing(size=size, mode=self.mode, resize=resize, interpolation=self.interpolation)


class Stage(Section):
    """From which share of the training on images have another size.

    Attributes:
        at: share of the training that is over, in [0, 1).
        size: side of the images, in pixels.
    """

    at: Fraction
    size: Annotated[int, Field(ge=8)]


class ValidationSection(Section):
    """Judgements in the course of the training, on images that it does not train on.

    Attributes:
        every: steps between them; 0 for none but at the end.
        images: how many are held out; of data that are given for this, how many are drawn, 0 for all.
        steps: of the attack, which has the training's final radius.
    """

    every: Annotated[int, Field(ge=0)] = 500
    images: Annotated[int, Field(ge=0)] = 128
    steps: Count = 10


class CheckpointSection(Section):
    """When the state is written, so that a run that was stopped goes on where it was.

    Attributes:
        every: steps between checkpoints; None for time alone.
        minutes: between checkpoints.
        keep: how many are kept, the newest.
    """

    every: Count | None = None
    minutes: Positive = 10.0
    keep: Count = 2


class AdapterSection(Section):
    """What is trained on human judgements.

    Attributes:
        name: `lora` for low-rank adapters in the trunk, `mlp` for a residual block on top of the frozen encoder.
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
