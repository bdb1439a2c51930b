"""Which of an encoder's layers are looked at, where several are."""

# As many as there are resolutions in most convolutional networks.
_MOST = 5


def spread(count: int) -> list[int]:
    """Five of so many layers, evenly, the last among them; all where there are fewer."""
    chosen = min(count, _MOST)
    return [count * number // chosen - 1 for number in range(1, chosen + 1)]
