"""LPIPS's and DreamSim's places, taken by one line.

```python
from robustsim.compat import lpips      # instead of: import lpips
from robustsim.compat import dreamsim   # instead of: from dreamsim import dreamsim
```

Both run a model of this package behind the other package's names, arguments, ranges and shapes. `lpips` is a module,
with `lpips.LPIPS` in it; `dreamsim` is a function.
"""

from typing import TYPE_CHECKING, Any

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.compat.dropin import CompatWarning
    from robustsim.compat.lpips import LPIPS
    from robustsim.compat.perceptual import PerceptualModel, dreamsim

__all__ = ["CompatWarning", "LPIPS", "PerceptualModel", "dreamsim"]  # noqa: RUF022 - as `sorted` has it

_named, __dir__ = lazy_names(
    __name__, {"CompatWarning": "dropin", "LPIPS": "lpips", "PerceptualModel": "perceptual", "dreamsim": "perceptual"}
)


def __getattr__(name: str) -> Any:
    if name == "lpips":  # a module, which `import robustsim.compat` alone does not import
        import robustsim.compat.lpips as module

        return module
    return _named(name)
