"""Other detectors beside the neighbours: what gives a score, and from where on that flags."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robustsim.encoders.weights import state_sha256
from robustsim.errors import InputError, RobustSimError
from robustsim.images.inputs import stack_squares
from robustsim.images.preprocessing import Preprocessing
from robustsim.metric import RobustSim

Takes = Literal["embeddings", "pixels"]
#: First parameters by which a function says what it takes.
_NAMES: dict[str, Takes] = {"embeddings": "embeddings", "pixels": "pixels", "images": "pixels"}


class ScoreDetector:
    """Something that gives each picture a score, and flags it where the score is at least a threshold.

    The function is called with a batch: with embeddings (N, D) float32 of length 1, or with pixels (N, 3, S, S) float32
    in [0, 1]; on the device of its weights, if it is a module, else on the CPU. It gives N finite scores. It says what
    it takes by an attribute `takes`, "embeddings" or "pixels", or by the name of its first parameter, `embeddings`,
    `pixels` or `images`. A module is put into eval mode. An attribute `score_range` says between what scores lie.

    Attributes:
        name: what verdicts call it.
        threshold: the least score that flags.
        takes: "embeddings" or "pixels".
        metric: whose embeddings it takes; None for the model of the banks.
        preprocessing: how a picture becomes its pixels.

    Args:
        function: pixels or embeddings -> (N,) or (N, 1).
        threshold: the least score that flags.
        name: what verdicts call it; its own name if not given.
        takes: where the function does not say so itself.
        metric: whose embeddings it takes, if not those of the banks' model.
        preprocessing: of pixels; the function's attribute of that name if not given, else all of the picture, squashed
            to 224 x 224.

    Raises:
        InputError: it cannot be called, does not say what it takes, or the threshold is not finite, or not
            between what scores lie.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        threshold: float = 0.5,
        *,
        name: str | None = None,
        takes: Takes | None = None,
        metric: RobustSim | None = None,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if not callable(function):
            raise InputError(f"a detector is called with a batch, and {type(function).__name__} cannot be called")
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        if not math.isfinite(threshold):
            raise InputError(f"the threshold of {self.name!r} must be finite, not {threshold}")
        least, most = getattr(function, "score_range", (-math.inf, math.inf))
        if not least <= threshold <= most:
            raise InputError(f"the threshold of {self.name!r} must be from {least} to {most}, not {threshold}")
        if takes not in (None, "embeddings", "pixels"):
            raise InputError(f"{self.name!r} takes embeddings or pixels, not {takes!r}")
        self.threshold, self.metric, self._function = float(threshold), metric, function
        self.takes: Takes = takes or _takes(function, self.name)
        self.preprocessing = preprocessing or getattr(function, "preprocessing", None) or Preprocessing()
        if metric is not None and self.takes != "embeddings":
            raise InputError(f"{self.name!r} takes pixels, so that no metric embeds for it")
        if metric is not None:
            self.check_metric(metric)
        if isinstance(function, nn.Module):
            function.eval()

    def identity(self) -> dict[str, Any]:
        """What tells it from another one, as JSON holds it; of a function the name, as its code is anybody's."""
        weights = state_sha256(self._function) if isinstance(self._function, nn.Module) else None
        model = None if self.metric is None else [self.metric.card.to_identity(), state_sha256(self.metric.encoder)]
        return {
            "name": self.name,
            "threshold": self.threshold,
            "takes": self.takes,
            "weights": weights,
            "model": model,
            "preprocessing": repr(self.preprocessing),
        }

    def check_metric(self, metric: RobustSim) -> None:
        """Refuse a model whose embeddings are not what the function says it takes: by their width (`embedding_dim`),
        and, unless the metric was given with the function, by the model's name in the catalogue (`model`).

        Raises:
            InputError: they are not.
        """
        self.check_model(metric.card.name, metric.card.embedding_dim)

    def check_model(self, name: str, width: int) -> None:
        """The same by the name of a model and the width of its embeddings.

        Raises:
            InputError: as for `check_metric`.
        """
        if self.takes != "embeddings":
            return
        dim, model = (getattr(self._function, said, None) for said in ("embedding_dim", "model"))
        is_other = self.metric is None and isinstance(model, str) and model != name
        if is_other or (isinstance(dim, int) and dim != width):
            raise InputError(
                f"the detector {self.name!r} takes embeddings{f' of {model!r}' if isinstance(model, str) else ''}"
                f"{f', {dim} values each' if isinstance(dim, int) else ''}, and not those of {name!r}, "
                f"{width} values: give it a metric of its own (metric=...)"
            )

    def margins(self, batch: Tensor) -> Tensor:
        """By how much scores exceed the threshold, (N,), with gradients, for attacks.

        Where the function has a method `logits`, of which its scores are the sigmoid, these are compared with that of
        the threshold: a sigmoid near 0 or 1 has no gradient.

        Args:
            batch: what the function takes.

        Raises:
            InputError: as for `of_squares`; or it has no gradient.
        """
        logits = getattr(self._function, "logits", None)
        if callable(logits) and 0 < self.threshold < 1:
            return self._each(self._called(logits, batch), len(batch)) - math.log(self.threshold / (1 - self.threshold))
        return self._each(self._called(self._function, batch), len(batch)) - self.threshold

    @property
    def function(self) -> Callable[..., Any]:
        """What gives the scores."""
        return self._function

    def of_embeddings(self, rows: Tensor) -> list[float]:
        """Scores of embeddings (N, D); errors as for `of_squares`."""
        return self.scores(rows.to(self.device))

    def of_squares(self, squares: Sequence[Tensor]) -> list[float]:
        """Scores of pictures as `load_square` gives them.

        Raises:
            InputError: the function raised something, or did not give a finite score for each.
        """
        return self.scores(stack_squares(squares, self.device))

    @property
    def device(self) -> torch.device:
        """Where its function works."""
        if isinstance(self._function, nn.Module):
            for value in (*self._function.parameters(), *self._function.buffers()):
                return value.device
        return torch.device("cpu")

    def scores(self, batch: Tensor) -> list[float]:
        """Scores of a batch of what the function takes, on its device; errors as for `of_squares`."""
        with torch.no_grad():
            scores = self._each(self._called(self._function, batch), len(batch)).to("cpu", torch.float64)
        if not scores.isfinite().all():
            raise InputError(f"the detector {self.name!r} gave a score that is not finite, which decides nothing")
        found: list[float] = scores.tolist()
        return found

    def _called(self, function: Callable[..., Any], batch: Tensor) -> Tensor:
        try:
            return torch.as_tensor(function(batch))
        except RobustSimError:
            raise
        except Exception as error:  # anybody's code: whatever it raises is told with its name
            raise InputError(f"the detector {self.name!r} failed: {type(error).__name__}: {error}") from error

    def _each(self, scores: Tensor, count: int) -> Tensor:
        if scores.ndim == 0 or scores.shape[0] != count or scores.numel() != count:
            raise InputError(
                f"the detector {self.name!r} must give {count} scores, (N,) or (N, 1), not {tuple(scores.shape)}"
            )
        return scores.reshape(count)


def _takes(function: Callable[..., Any], name: str) -> Takes:
    said = getattr(function, "takes", None)
    if said in ("embeddings", "pixels"):
        return "embeddings" if said == "embeddings" else "pixels"
    try:
        parameters = list(
            inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
        )
    except (TypeError, ValueError):  # of builtins nothing is known
        parameters = []
    if parameters and parameters[0] in _NAMES:
        return _NAMES[parameters[0]]
    raise InputError(
        f"{name!r} does not say what it takes: give it an attribute takes, 'embeddings' or 'pixels', or call its first "
        "parameter so"
    )
