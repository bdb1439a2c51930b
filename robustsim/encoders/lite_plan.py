"""The plan of EfficientNet-Lite0, without torch: whoever builds it, of modules or as a graph, builds it from here."""

# (blocks, kernel, stride, expansion, channels) of the seven stages
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, LAST, HEAD = 32, STAGES[-1][-1], 1280


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME": (before, after); with stride 2 on an even size, one more at the end than before."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def cells(length: int, grid: int) -> list[slice]:
    """The places of each of `grid` cells on a line of the last feature map; of 7 places, 2 cells share the middle."""
    return [slice(length * cell // grid, -(-length * (cell + 1) // grid)) for cell in range(grid)]
