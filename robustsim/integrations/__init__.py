"""The metric in other people's frameworks.

`RobustSimilarity` is a `torchmetrics.Metric`, and by that what Lightning logs:

```python
similarity = RobustSimilarity(normalize=True)  # images in [0, 1]
similarity.update(restored, originals)
similarity.compute()
```

torchmetrics is imported when the class is first used (`pip install "robustsim[integrations]"`).
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.integrations.similarity import RobustSimilarity

__all__ = ["RobustSimilarity"]

__getattr__, __dir__ = lazy_names(__name__, {"RobustSimilarity": "similarity"})
