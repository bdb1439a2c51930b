"""Other people's metrics behind one interface, to be judged by the same measures as ours.

    lpips = load_baseline("lpips-alex")
    d = lpips.distance(a, b)                    # (N, 3, H, W) in [0, 1] -> (N,), smaller is more alike

The learned ones come from the libraries that own them (`pip install "robustsim[baselines]"`), imported when they are
first used. One's own metric joins through [`from_callable`][robustsim.baselines.from_callable] or, by its name,
[`import_metric`][robustsim.baselines.import_metric].
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.baselines.base import Baseline
    from robustsim.baselines.callables import from_callable, import_metric
    from robustsim.baselines.dreamsim import DreamSim
    from robustsim.baselines.hashes import PHash
    from robustsim.baselines.lipsim import LipSim
    from robustsim.baselines.lpips import LPIPS
    from robustsim.baselines.pixels import L2, PSNR, Linf
    from robustsim.baselines.quality import DISTS, PieAPP
    from robustsim.baselines.registry import list_baselines, load_baseline
    from robustsim.baselines.structure import MSSSIM, SSIM

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "Baseline",
    "DISTS",
    "DreamSim",
    "L2",
    "LPIPS",
    "Linf",
    "LipSim",
    "MSSSIM",
    "PHash",
    "PSNR",
    "PieAPP",
    "SSIM",
    "from_callable",
    "import_metric",
    "list_baselines",
    "load_baseline",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Baseline": "base",
        "DISTS": "quality",
        "DreamSim": "dreamsim",
        "L2": "pixels",
        "LPIPS": "lpips",
        "Linf": "pixels",
        "LipSim": "lipsim",
        "MSSSIM": "structure",
        "PHash": "hashes",
        "PSNR": "pixels",
        "PieAPP": "quality",
        "SSIM": "structure",
        "from_callable": "callables",
        "import_metric": "callables",
        "list_baselines": "registry",
        "load_baseline": "registry",
    },
)
