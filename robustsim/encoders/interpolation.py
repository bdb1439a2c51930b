"""Between two encoders: how much of a fine-tuning to keep."""

import copy
import dataclasses

import torch

from robustsim.encoders.encoder import Encoder
from robustsim.errors import InputError


def interpolate_encoders(original: Encoder, tuned: Encoder, share: float) -> Encoder:
    """`(1 - share) * original + share * tuned`, weight by weight (WiSE-FT; Wortsman et al. 2022, Eq. 1).

    Adversarial fine-tuning trades agreement on clean images for robustness. A little less of it gives some of the one
    back for some of the other, after the fact and without training; measure both to choose.

    Args:
        original: what the fine-tuning began as, or an earlier stage of it.
        tuned: what it ended as.
        share: how much of the fine-tuning to keep, in [0, 1].

    Returns:
        An encoder with the card of `tuned`, whose `training` names the share and the original. Neither argument is
        changed.

    Raises:
        InputError: a share outside of [0, 1], two architectures, or two ways of preprocessing.
    """
    if not 0 <= share <= 1:
        raise InputError(f"share must be in [0, 1], not {share!r}")
    # The text tower is not trained, so a tower that only one of them brings is no difference.
    first, second = (
        {name: value for name, value in one.state_dict().items() if not name.startswith("text.")}
        for one in (original, tuned)
    )
    begun, ended = ({name: value.shape for name, value in state.items()} for state in (first, second))
    differing = [name for name in {**begun, **ended} if begun.get(name) != ended.get(name)]
    if differing or original.card.preprocessing != tuned.card.preprocessing:
        what = differing[0] if differing else "the preprocessing"
        raise InputError(
            f"{original.card.name!r} and {tuned.card.name!r} are not two states of one encoder: {what} differs"
        )
    result = copy.deepcopy(tuned)
    state = result.state_dict()
    for name, value in second.items():
        if value.is_floating_point():  # what counts stays as it was counted last
            start = first[name].to(value.device, torch.float64)
            state[name].copy_(torch.lerp(start, value.double(), share))
    training = {**tuned.card.training, "interpolated_with": original.card.name, "share": share}
    result.card = dataclasses.replace(tuned.card, weights_sha256=None, calibration=None, training=training)
    return result
