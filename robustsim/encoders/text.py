"""The text side of a CLIP model."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TextTower(nn.Module):
    """An open_clip model without its image tower, together with its tokenizer: texts -> (N, D)."""

    def __init__(self, model: nn.Module, architecture: str, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = model
        self._tokenize = _tokenizer(architecture, config)

    def forward(self, texts: list[str]) -> Tensor:
        """(N, D) features, not normalised; a text longer than the context is cut at its end."""
        model: Any = self.model
        tokens = self._tokenize(texts).to(next(model.parameters()).device)
        features: Tensor = model.encode_text(tokens)
        return features


def _tokenizer(architecture: str, config: Mapping[str, Any]) -> Any:
    import open_clip
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if architecture in open_clip.list_models():
        return open_clip.get_tokenizer(architecture)
    options = {"context_length": config.get("context_length", 77), **config.get("tokenizer_kwargs", {})}
    if config.get("hf_tokenizer_name"):
        return HFTokenizer(config["hf_tokenizer_name"], tokenizer_mode=config.get("tokenizer_mode"), **options)
    return SimpleTokenizer(**options)
