"""Where two pictures differ, in the eyes of a metric."""

from robustsim.explain.differences import difference_map

__all__ = ["difference_map"]
