"""Attacks: the smallest lies that a metric, or any differentiable model, can be told.

They take tensors and a callable, never a metric class:

```python
objective = TwoAFC(embed=metric.embed_pixels, reference=r, left=a, right=b, labels=nearer)
result = APGD(norm="linf", eps=4 / 255, steps=100)(objective, objective.images)
```
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.attacks.batches import attack_in_batches
    from robustsim.attacks.engine.base import Attack
    from robustsim.attacks.engine.result import AttackResult, AttackStep
    from robustsim.attacks.engine.threat import ThreatModel, parse_eps
    from robustsim.attacks.masking import MaskingCheck, MaskingReport, check_gradient_masking
    from robustsim.attacks.methods.apgd import APGD
    from robustsim.attacks.methods.carlini_wagner import CarliniWagner
    from robustsim.attacks.methods.ensemble import AutoAttack, EnsembleAttack
    from robustsim.attacks.methods.fab import FAB
    from robustsim.attacks.methods.noise import RandomNoise
    from robustsim.attacks.methods.pgd import PGD
    from robustsim.attacks.methods.square import SquareAttack
    from robustsim.attacks.objectives.decisions import Classification, OddOneOut, TwoAFC
    from robustsim.attacks.objectives.embeddings import Objective, Targeted, TextTargeted, Untargeted

__all__ = [  # noqa: RUF022 - in plain order, as everywhere
    "APGD",
    "Attack",
    "AttackResult",
    "AttackStep",
    "AutoAttack",
    "CarliniWagner",
    "Classification",
    "EnsembleAttack",
    "FAB",
    "MaskingCheck",
    "MaskingReport",
    "Objective",
    "OddOneOut",
    "PGD",
    "RandomNoise",
    "SquareAttack",
    "Targeted",
    "TextTargeted",
    "ThreatModel",
    "TwoAFC",
    "Untargeted",
    "attack_in_batches",
    "check_gradient_masking",
    "parse_eps",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "APGD": "methods.apgd",
        "Attack": "engine.base",
        "AttackResult": "engine.result",
        "AttackStep": "engine.result",
        "AutoAttack": "methods.ensemble",
        "CarliniWagner": "methods.carlini_wagner",
        "Classification": "objectives.decisions",
        "EnsembleAttack": "methods.ensemble",
        "FAB": "methods.fab",
        "MaskingCheck": "masking",
        "MaskingReport": "masking",
        "Objective": "objectives.embeddings",
        "OddOneOut": "objectives.decisions",
        "PGD": "methods.pgd",
        "RandomNoise": "methods.noise",
        "SquareAttack": "methods.square",
        "Targeted": "objectives.embeddings",
        "TextTargeted": "objectives.embeddings",
        "ThreatModel": "engine.threat",
        "TwoAFC": "objectives.decisions",
        "Untargeted": "objectives.embeddings",
        "attack_in_batches": "batches",
        "check_gradient_masking": "masking",
        "parse_eps": "engine.threat",
    },
)
