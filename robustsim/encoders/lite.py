"""EfficientNet-Lite0 without batch norms and classifier: the architecture of the bundled encoder.

Tan and Le, EfficientNet (ICML 2019), in the Lite variant: no squeeze-and-excitation, ReLU6 throughout. The batch
norms are folded into the convolutions before them, so every convolution has a bias.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustsim.encoders.card import EncoderCard
from robustsim.encoders.fast import inverted
from robustsim.encoders.lite_plan import HEAD, LAST, STAGES, STEM, cells, same_padding
from robustsim.errors import CardError
from robustsim.images.tracing import is_transformed


def build(card: EncoderCard) -> "LiteTrunk":
    """The card's trunk; its architecture's options are `grid` and `head`.

    Raises:
        CardError: it has another one, or `embedding_dim` is not what they make.
    """
    options = dict(card.architecture.options)
    grid, head = options.pop("grid", 1), options.pop("head", True)
    if (
        options
        or type(grid) is not int
        or grid < 1
        or type(head) is not bool
        or card.embedding_dim != grid**2 * (HEAD if head else LAST)
    ):
        raise CardError(
            f"{card.name!r}: {card.architecture.name} takes the options grid, a whole number, and head, true or "
            f"false, and has grid ** 2 * {HEAD} dimensions with a head and grid ** 2 * {LAST} without; the card says "
            f"{dict(card.architecture.options)} and {card.embedding_dim}"
        )
    return LiteTrunk(grid=grid, head=head)


class _SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" padding: with stride 2 on an even size, one more row and column at the end than before."""

    def border(self, x: Tensor) -> tuple[int, int, int, int]:
        """What is added to an input on the left, right, top and bottom beyond torch's own padding."""
        if self.stride == (1, 1):
            return 0, 0, 0, 0
        kernel, stride = self.kernel_size[0], self.stride[0]
        (left, right), (top, bottom) = (same_padding(length, kernel, stride) for length in (x.shape[-1], x.shape[-2]))
        return left, right, top, bottom

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1):
            return super().forward(x)
        return F.conv2d(F.pad(x, self.border(x)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return _SameConv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups)


class _Block(nn.Module):
    """Inverted residual: widen by 1x1, filter each channel, narrow by 1x1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _conv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = _conv(wide, wide, kernel, stride, groups=wide)
        self.project = _conv(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        out: Tensor = self.project(F.relu6(self.depthwise(y)))
        return x + out if self.residual else out


class LiteTrunk(nn.Module):
    """(N, 3, H, W) normalised pixels -> (N, grid ** 2 * C): means over parts of the last feature map.

    Args:
        grid: cells on a side, row by row; of 7 places, 2 cells share the middle one. 1 for the mean over the whole.
        head: whether the last map is that of the last convolution, which widens it to C = 1280, or the one before it,
            C = 320.
    """

    def __init__(self, *, grid: int = 1, head: bool = True) -> None:
        super().__init__()
        self.grid = grid
        blocks: list[nn.Module] = []
        channels = STEM
        self._finest: list[int] = []  # the last block of each resolution but that of the last map
        for count, kernel, stride, expansion, outputs in STAGES:
            if stride > 1:
                self._finest.append(len(blocks) - 1)
            for index in range(count):
                blocks.append(_Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self.stem = _conv(3, STEM, 3, 2)
        self.blocks = nn.Sequential(*blocks)
        self.head = _conv(channels, HEAD, 1) if head else None

    def feature_map(self, x: Tensor) -> Tensor:
        """(N, C, H / 32, W / 32), before the mean."""
        # Channels last is what the CPU's and the GPU's convolutions are fastest with; vmap knows no such thing.
        if not is_transformed(x):
            x = x.contiguous(memory_format=torch.channels_last)
        return self._widened(inverted.run(self.blocks, F.relu6(self.stem(x)), _Block, _SameConv2d))

    def forward(self, x: Tensor) -> Tensor:
        return self._means(self.feature_map(x))

    def path(self) -> tuple[Literal["fast"], str]:
        """By what code it is run: this library's own."""
        return "fast", ""

    def tokens(self, x: Tensor, *, project: bool = False) -> tuple[Tensor, Tensor]:
        """The embedding and the last feature map; there is no projection to apply."""
        last = self.feature_map(x)
        return self._means(last), last

    def layers(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embedding, and a map of each resolution: 16 channels of half the side to C of a 32nd of it."""
        if not is_transformed(x):
            x = x.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.stem(x))
        maps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self._finest:
                maps.append(x)
        last = self._widened(x)
        return self._means(last), [*maps, last]

    def _widened(self, x: Tensor) -> Tensor:
        return x if self.head is None else F.relu6(self.head(x))

    def _means(self, last: Tensor) -> Tensor:
        if self.grid == 1:
            return last.mean((2, 3))
        rows, columns = (cells(size, self.grid) for size in last.shape[2:])
        return torch.cat([last[..., row, column].mean((2, 3)) for row in rows for column in columns], 1)
