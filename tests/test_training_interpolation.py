import dataclasses

import pytest
import torch

from robustsim.encoders import load_encoder, save_encoder
from robustsim.errors import InputError
from robustsim.images import Preprocessing
from robustsim.training import interpolate_encoders
from tests import trainings


@pytest.fixture
def pair():
    return trainings.encoder(seed=0), trainings.encoder(seed=1)


def test_its_ends_are_the_two_encoders(pair):
    original, tuned = pair
    for share, end in ((0, original), (1, tuned)):
        found = interpolate_encoders(original, tuned, share).state_dict()
        assert all(torch.equal(found[name], value) for name, value in end.state_dict().items())


def test_between_them_weights_lie_on_a_line_and_neither_is_changed(pair):
    original, tuned = pair
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in pair]
    found = interpolate_encoders(original, tuned, 0.75).state_dict()
    for name, value in found.items():
        assert torch.allclose(value, 0.25 * before[0][name] + 0.75 * before[1][name], atol=1e-6), name
    for one, state in zip(pair, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in one.state_dict().items())


def test_the_card_tells_and_the_result_is_saved(tmp_path):
    original, tuned = load_encoder("lite-clean"), load_encoder("lite-clean")
    tuned.card = dataclasses.replace(tuned.card, training={"recipe": "fare-lite", "seed": 0})
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 0.1
    found = interpolate_encoders(original, tuned, 0.5)
    wanted = {"recipe": "fare-lite", "seed": 0, "interpolated_with": "lite-clean", "share": 0.5}
    assert found.card.training == wanted
    again = load_encoder(save_encoder(found, tmp_path / "between"))
    assert all(torch.equal(again.state_dict()[name], value) for name, value in found.state_dict().items())


def test_what_is_not_one_encoder_is_refused(pair):
    original, tuned = pair
    with pytest.raises(InputError, match=r"share must be in \[0, 1\], not 1.5"):
        interpolate_encoders(original, tuned, 1.5)
    with pytest.raises(InputError, match=r"'lite-clean' and 'small' are not two states of one encoder: .* differs"):
        interpolate_encoders(load_encoder("lite-clean"), tuned, 0.5)
    original.card = dataclasses.replace(original.card, preprocessing=Preprocessing(size=8))
    with pytest.raises(InputError, match="the preprocessing differs"):
        interpolate_encoders(original, tuned, 0.5)
