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
    `pixels` or `images`. A module is put into eval mode.

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
        InputError: it cannot be called, does not say what it takes, or the threshold is not finite.
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
        if self.takes != "embeddings":
            return
        dim, model = (getattr(self._function, name, None) for name in ("embedding_dim", "model"))
        is_other = self.metric is None and isinstance(model, str) and model != metric.card.name
        if is_other or (isinstance(dim, int) and dim != metric.card.embedding_dim):
            raise InputError(
                f"the detector {self.name!r} takes embeddings{f' of {model!r}' if isinstance(model, str) else ''}"
                f"{f', {dim} values each' if isinstance(dim, int) else ''}, and not those of {metric.card.name!r}, "
                f"{metric.card.embedding_dim} values: give it a metric of its own (metric=...)"
            )

    def of_embeddings(self, rows: Tensor) -> list[float]:
        """Scores of embeddings (N, D); errors as for `of_squares`."""
        return self._scores(rows.to(self._device))

    def of_squares(self, squares: Sequence[Tensor]) -> list[float]:
        """Scores of pictures as `load_square` gives them.

        Raises:
            InputError: the function raised something, or did not give a finite score for each.
        """
        return self._scores(stack_squares(squares, self._device))

    @property
    def _device(self) -> torch.device:
        if isinstance(self._function, nn.Module):
            for value in (*self._function.parameters(), *self._function.buffers()):
                return value.device
        return torch.device("cpu")

    def _scores(self, batch: Tensor) -> list[float]:
        try:
            with torch.no_grad():
                result = self._function(batch)
                scores = torch.as_tensor(result).detach().to("cpu", torch.float64)
        except RobustSimError:
            raise
        except Exception as error:  # anybody's code: whatever it raises is told with its name
            raise InputError(f"the detector {self.name!r} failed: {type(error).__name__}: {error}") from error
        if scores.ndim == 0 or scores.shape[0] != len(batch) or scores.numel() != len(batch):
            raise InputError(
                f"the detector {self.name!r} must give {len(batch)} scores, (N,) or (N, 1), not {tuple(scores.shape)}"
            )
        if not scores.isfinite().all():
            raise InputError(f"the detector {self.name!r} gave a score that is not finite, which decides nothing")
        found: list[float] = scores.reshape(len(batch)).tolist()
        return found


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
