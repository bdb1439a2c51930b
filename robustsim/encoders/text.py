"""The text side of a CLIP model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TextTower(nn.Module):
    """An open_clip model without its image tower, together with CLIP's tokenizer: texts -> (N, D)."""

    def __init__(self, model: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        self.model = model
        options = {"context_length": config.get("context_length", 77), **config.get("tokenizer_kwargs", {})}
        self._tokenize = SimpleTokenizer(**options)

    def forward(self, texts: list[str]) -> Tensor:
        """(N, D) features, not normalised; a text longer than the context is cut at its end."""
        model: Any = self.model
        tokens = self._tokenize(texts).to(next(model.parameters()).device)
        features: Tensor = model.encode_text(tokens)
        return features
