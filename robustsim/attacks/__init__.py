"""Attacks: the smallest lies that a metric, or any differentiable model, can be told.

They take tensors and a callable, never a metric class::

    objective = TwoAFC(embed=metric.embed_pixels, reference=r, left=a, right=b, labels=nearer)
    result = APGD(norm="linf", eps=4 / 255, steps=100)(objective, objective.images)
"""

from typing import TYPE_CHECKING

from robustsim.lazy import lazy_names

if TYPE_CHECKING:
    from robustsim.attacks.apgd import APGD
    from robustsim.attacks.base import Attack
    from robustsim.attacks.batches import attack_in_batches
    from robustsim.attacks.carlini_wagner import CarliniWagner
    from robustsim.attacks.decisions import Classification, OddOneOut, TwoAFC
    from robustsim.attacks.ensemble import AutoAttack, EnsembleAttack
    from robustsim.attacks.fab import FAB
    from robustsim.attacks.masking import MaskingCheck, MaskingReport, check_gradient_masking
    from robustsim.attacks.noise import RandomNoise
    from robustsim.attacks.objectives import Objective, Targeted, TextTargeted, Untargeted
    from robustsim.attacks.pgd import PGD
    from robustsim.attacks.result import AttackResult, AttackStep
    from robustsim.attacks.square import SquareAttack
    from robustsim.attacks.threat import ThreatModel, parse_eps

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
        "APGD": "apgd",
        "Attack": "base",
        "AttackResult": "result",
        "AttackStep": "result",
        "AutoAttack": "ensemble",
        "CarliniWagner": "carlini_wagner",
        "Classification": "decisions",
        "EnsembleAttack": "ensemble",
        "FAB": "fab",
        "MaskingCheck": "masking",
        "MaskingReport": "masking",
        "Objective": "objectives",
        "OddOneOut": "decisions",
        "PGD": "pgd",
        "RandomNoise": "noise",
        "SquareAttack": "square",
        "Targeted": "objectives",
        "TextTargeted": "objectives",
        "ThreatModel": "threat",
        "TwoAFC": "decisions",
        "Untargeted": "objectives",
        "attack_in_batches": "batches",
        "check_gradient_masking": "masking",
        "parse_eps": "threat",
    },
)
