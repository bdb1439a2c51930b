"""What perceptual tuning trains: low-rank adapters in an encoder's trunk, or a residual MLP on top of it."""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from copy import deepcopy
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.card import EncoderCard, Head
from robustsim.encoders.encoder import Encoder
from robustsim.errors import InputError, MissingDependencyError, WeightsError

_CLIP_ATTENTION = r"(.*\.)?resblocks\.\d+\.attn"
_TIMM_ATTENTION = r"(.*\.)?blocks\.\d+\.attn\.qkv"
_CONVNEXT_MLP = r"(.*\.)?stages\.\d+\.blocks\.\d+\.mlp\.fc[12]"
# What an architecture is recognised by, and its targets.
_DEFAULTS = {
    _CLIP_ATTENTION: rf"{_CLIP_ATTENTION}\.in_proj",
    _TIMM_ATTENTION: _TIMM_ATTENTION,
    _CONVNEXT_MLP: _CONVNEXT_MLP,
    r"blocks\.\d+\.project": r"blocks\.\d+\.(expand|project)|head",
}


def default_targets(encoder: Encoder) -> str:
    r"""The layers that adapters are laid on where none are named, as in the published NIGHTS-tuned checkpoints.

    - transformers of timm (DINO, DINOv2): `qkv` of every block's attention;
    - transformers of open_clip: `in_proj` of every block's attention, which is the same layer;
    - ConvNeXt, of open_clip or of timm: `fc1` and `fc2` of every block's MLP;
    - the bundled architecture: every 1x1 convolution (`expand`, `project`, `head`).

    Returns:
        A regular expression for whole names of modules in `encoder.trunk`, as `add_lora` takes it.

    Raises:
        InputError: the architecture is none of these.
    """
    names = [name for name, _ in encoder.trunk.named_modules()]
    for sign, targets in _DEFAULTS.items():
        if any(re.fullmatch(sign, name) for name in names):
            return targets
    raise InputError(
        f"which layers of {encoder.card.architecture.name!r} to lay adapters on is not known: name them with "
        f"targets. {_layers(encoder.trunk)}"
    )


def add_lora(
    encoder: Encoder,
    *,
    r: int = 16,
    alpha: float = 0.5,
    dropout: float = 0.3,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> Encoder:
    """Lay low-rank adapters on layers of the trunk, in place; all else is frozen.

    A layer `W x` becomes `W x + alpha / r * B A dropout(x)` (Hu et al., LoRA, 2021, Eq. 3, with dropout as in the
    authors' code; rank, scale and dropout are those of DreamSim, Fu et al., 2023). `A` is drawn from a uniform
    distribution, `B` is 0: before the first step the encoder is what it was. What is to be trained are the parameters
    with `requires_grad`. No module changes between train and eval mode; an adapter has the mode of its layer.

    The attention of open_clip's transformers is taken apart into `in_proj` (query, key and value) and `out_proj`
    until `merge_lora_adapters` puts it together again; by default `in_proj` alone has an adapter. PEFT's own
    layer for this attention would always adapt both, ignore dropout, round the frozen weights anew at every call, and
    apply the change of `out_proj` twice (peft pull request 3774). The values stay those of the attention in one
    piece, but for last digits where no gradient is wanted: PyTorch has a fused kernel of the whole for that.

    Args:
        encoder: what to adapt; without adapters.
        r: rank of the adapters, from 1.
        alpha: scale, above 0; the adapters' product is multiplied with `alpha / r`.
        dropout: probability, in [0, 1), with which an input of an adapter is dropped in train mode.
        targets: names of modules in the trunk, matched as PEFT does: a sequence holds whole names or their ends
            (`fc1` is every `... .fc1`), one string is a regular expression for whole names. Linear layers and
            convolutions of one group can be adapted. `default_targets` if not given.
        seed: of the initial `A`; torch's global random state is left alone.

    Returns:
        The encoder it was given.

    Raises:
        InputError: a number out of its range; nothing matches the targets; what matches cannot be adapted, or its
            forward method is not used; the encoder has adapters already. The encoder is then as it was.
        MissingDependencyError: peft is not installed.
    """
    if r < 1 or not 0 < alpha < math.inf or not 0 <= dropout < 1:
        raise InputError(
            f"r = {r}, alpha = {alpha} and dropout = {dropout} are no LoRA adapter: r is at least 1, alpha is above 0, "
            "dropout is in [0, 1)"
        )
    try:
        peft: Any = import_module("peft")
    except ImportError as error:
        raise MissingDependencyError(
            f'LoRA adapters need the package "peft" ({error}): pip install "robustsim[training]"'
        ) from error
    if _adapted(encoder):
        raise InputError("the encoder has adapters already: merge them first (merge_lora_adapters)")
    names = _match(encoder, default_targets(encoder) if targets is None else targets)
    _swap(encoder.trunk, nn.MultiheadAttention, _SplitAttention)
    encoder.requires_grad_(False)
    whole_names = "|".join(map(re.escape, names))  # the end of one may be the end of others
    config = peft.LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=whole_names)
    with torch.random.fork_rng(devices=[]):  # what the constructors draw is replaced below
        peft.inject_adapter_in_model(config, encoder.trunk)
    generator = torch.Generator().manual_seed(seed)
    for _, layer in _adapted(encoder):
        layer.train(layer.get_base_layer().training)
        for down, up in zip(layer.lora_A.values(), layer.lora_B.values(), strict=True):
            # On the CPU and in float32, so that a seed gives the same adapters everywhere.
            start = torch.empty(down.weight.shape, dtype=torch.float32)
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            with torch.no_grad():
                down.weight.copy_(start)
                up.weight.zero_()
    return encoder


def merge_lora_adapters(encoder: Encoder) -> Encoder:
    """Add the adapters of `add_lora` to the weights they lie on, `W + alpha / r * B A`, in place.

    Afterwards the modules are the original ones, with the names and shapes they had, so that the encoder can be saved
    and loaded like any other. Its parameters stay frozen. Its card no longer has a source, a checksum or scores,
    which were those of the weights before; what else is to be said of the new weights is for the caller to say.

    Returns:
        The encoder it was given.

    Raises:
        InputError: the encoder has no adapters.
        WeightsError: an adapter is not finite; nothing is merged then.
    """
    layers = _adapted(encoder)
    if not layers:
        raise InputError("the encoder has no adapters to merge: add_lora adds them")
    for name, layer in layers:
        matrices = [part.weight for part in (*layer.lora_A.values(), *layer.lora_B.values())]
        if not all(bool(torch.isfinite(matrix).all()) for matrix in matrices):
            raise WeightsError(f"the adapter of {name!r} has values that are not finite: the training went astray")
    for name, layer in layers:
        layer.merge()
        _replace(encoder.trunk, name, layer.get_base_layer())
    _swap(encoder.trunk, _SplitAttention, _SplitAttention.joined)
    vars(encoder.trunk).pop("peft_config", None)
    encoder.card = _without_claims(encoder.card)
    return encoder


def add_mlp(encoder: Encoder, *, hidden: int = 512, seed: int = 0) -> Encoder:
    """An encoder with a residual MLP on its embedding, which alone is to be trained.

    Its second layer is 0, so that the embeddings are at first those of `encoder`; its first is drawn as PyTorch draws
    linear layers.

    Args:
        encoder: what to put it on; without a head and without adapters. Its trunk and text tower are shared with
            the result, and frozen.
        hidden: width of the MLP, from 1: D -> hidden -> D.
        seed: of the initial first layer; torch's global random state is left alone.

    Returns:
        A new encoder on the same device, in the same type and mode. Its card has `Head(kind="mlp", hidden=hidden)`,
        and no source, checksum or scores.

    Raises:
        InputError: `hidden` is below 1, or the encoder has a head or adapters already.
    """
    if hidden < 1:
        raise InputError(f"an MLP of hidden width {hidden} is none: give 1 or more")
    if encoder.head is not None:
        raise InputError(f"{encoder.card.name!r} has an MLP head already: another cannot follow it")
    if _adapted(encoder):
        raise InputError("the encoder has adapters: merge them first (merge_lora_adapters)")
    card = _without_claims(encoder.card, head=Head(kind="mlp", hidden=hidden))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # alone: torch.manual_seed would seed the GPUs too
        out = Encoder(card, encoder.trunk, encoder.text)
    out.requires_grad_(False)
    head: Any = out.head
    nn.init.zeros_(head.fc2.weight)
    nn.init.zeros_(head.fc2.bias)
    head.requires_grad_(True).to(encoder.mean).train(encoder.training)
    out.mean, out.std = encoder.mean, encoder.std
    out.training = encoder.training  # alone: modules of the trunk may have modes of their own
    return out


class _SplitAttention(nn.Module):
    """`nn.MultiheadAttention` of a sequence with itself, its packed input projection a layer of its own.

    Parameters are shared with the attention it was made from, and with the one that `joined` makes.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        width = attention.embed_dim
        self.heads, self.dropout, self.batch_first = attention.num_heads, attention.dropout, attention.batch_first
        self.in_proj = nn.Linear(width, 3 * width, bias=attention.in_proj_bias is not None, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.train(attention.training)

    def joined(self) -> nn.MultiheadAttention:
        """The attention in one piece."""
        width, bias = self.in_proj.in_features, self.in_proj.bias is not None
        whole: Any = nn.MultiheadAttention(
            width, self.heads, dropout=self.dropout, bias=bias, batch_first=self.batch_first, device="meta"
        )
        whole.in_proj_weight, whole.in_proj_bias, whole.out_proj = self.in_proj.weight, self.in_proj.bias, self.out_proj
        whole.train(self.training)
        return cast(nn.MultiheadAttention, whole)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """(N, L, E), key and value the same, to (N, L, E), or all (L, N, E); the mask, (L, L), is added."""
        x = query.transpose(0, 1) if self.batch_first else query  # as PyTorch's own does, for the same roundings
        length, count, width = x.shape
        q, k, v = self.in_proj(x).view(length, count, 3, self.heads, -1).permute(2, 1, 3, 0, 4).contiguous()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask, self.dropout if self.training else 0.0)
        y = self.out_proj(y.permute(2, 0, 1, 3).reshape(length, count, width))
        return (y.transpose(0, 1) if self.batch_first else y), None


def _swap(trunk: nn.Module, old: type[nn.Module], new: Callable[[Any], nn.Module]) -> None:
    for name, module in list(trunk.named_modules()):
        if isinstance(module, old) and re.fullmatch(_CLIP_ATTENTION, name):
            _replace(trunk, name, new(module))


def _replace(trunk: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(trunk.get_submodule(parent), child, module)


def _adapted(encoder: Encoder) -> list[tuple[str, Any]]:
    """PEFT's layers in the trunk and their names, in its order."""
    return [(name, module) for name, module in encoder.trunk.named_modules() if hasattr(module, "lora_A")]


def _without_claims(card: EncoderCard, **changes: Any) -> EncoderCard:
    return dataclasses.replace(card, source=None, weights_sha256=None, scores={}, **changes)


def _can_adapt(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _match(encoder: Encoder, targets: Sequence[str]) -> list[str]:
    """Names of the layers that targets mean in the trunk, attention taken apart, each of a kind that can be adapted."""
    twin = deepcopy(encoder.trunk).eval()  # what is looked at may be refused
    _swap(twin, nn.MultiheadAttention, _SplitAttention)
    modules = dict(twin.named_modules())
    shown = targets if isinstance(targets, str) else list(targets)
    pattern = targets if isinstance(targets, str) else rf"(.*\.)?({'|'.join(map(re.escape, targets))})"
    try:
        names = [name for name in modules if name and re.fullmatch(pattern, name)]
    except re.error as error:
        raise InputError(f"the targets {shown!r} are no regular expression: {error}") from None
    if not names:
        raise InputError(f"no module of {encoder.card.name!r} matches the targets {shown!r}. {_layers(twin)}")
    for name in names:
        if not _can_adapt(modules[name]):
            raise InputError(
                f"the targets {shown!r} match {name!r}, a {type(modules[name]).__name__.lstrip('_')}: adapters lie on "
                f"linear layers and on convolutions of one group. {_layers(twin)}"
            )
    idle = dict.fromkeys(names)
    for name in names:
        modules[name].register_forward_pre_hook(lambda *_, name=name: idle.pop(name, None))
    size = encoder.card.preprocessing.size
    with torch.no_grad():
        twin(encoder.normalize(torch.zeros(1, 3, size, size, device=encoder.mean.device)))
    if idle:
        raise InputError(
            f"the targets {shown!r} match {next(iter(idle))!r}, whose forward method is not called: the architecture "
            "does not use it, or uses its weights directly, and an adapter would change nothing. Name other targets"
        )
    return names


def _layers(trunk: nn.Module) -> str:
    """One layer of each name that adapters can be laid on, for messages."""
    found: dict[str, str] = {}
    for name, module in trunk.named_modules():
        if _can_adapt(module):
            found.setdefault(name.rpartition(".")[2], name)
    return f"It has layers such as {', '.join(list(found.values())[:6])}" if found else "It has no layer to adapt"
