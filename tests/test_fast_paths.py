"""The faster ways through encoders against their libraries' own: the same numbers, and nothing else changes."""

import copy
import io
import threading

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from robustsim import EncoderCard
from robustsim.encoders import Architecture, Execution, lite, load_encoder, save_encoder
from robustsim.encoders.clip import ClipTrunk
from robustsim.encoders.encoder import Encoder
from robustsim.encoders.fast import onednn, products, vit
from robustsim.images import Preprocessing
from tests import layouts

pytestmark = pytest.mark.usefixtures("one_thread")

# The kinds of vision transformer that open_clip's configurations ask for.
VARIANTS = {
    "as CLIP has it": {},
    "QuickGELU": {"quick_gelu": True},
    "LayerScale": {"ls_init_value": 0.5},
    "no norm before": {"no_ln_pre": True},
    "means of places": {"pool_type": "avg", "final_ln_after_pool": True},
    "the norm after pooling": {"final_ln_after_pool": True},
    "fixed positions": {"pos_embed_type": "sin_cos_2d"},
    "pooled by attention": {"attentional_pool": True, "attn_pooler_heads": 2},
}


def tower(quick_gelu=False, layers=3, **vision):
    config = copy.deepcopy(layouts.VIT_B_32)
    config["vision_cfg"].update(image_size=48, patch_size=16, layers=layers, **vision)
    return layouts.open_clip_model({**config, "quick_gelu": quick_gelu}).visual.requires_grad_(False)


def encoder_of(visual):
    card = EncoderCard(
        name="small",
        architecture=Architecture(library="open_clip", name="ViT-B-32"),
        embedding_dim=24,
        preprocessing=Preprocessing(size=48),
    )
    return Encoder(card, ClipTrunk(visual)).eval()


def pixels(count=2, size=48, dtype=torch.float32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5)).sub(0.5).mul(4).to(dtype)


def far(x, y):
    """How far apart two tensors are, as a share of their length."""
    x, y = x.detach().double(), y.detach().double()
    return float((x - y).norm() / y.norm())


@pytest.fixture
def no_multihead(monkeypatch):
    """Whoever calls the module that the fast path is there to go around fails."""

    def refuse(self, *args, **kwargs):
        raise AssertionError("nn.MultiheadAttention was called")

    monkeypatch.setattr(nn.MultiheadAttention, "forward", refuse)


def with_gradient(function, x):
    x = x.clone().requires_grad_()
    out = function(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(6))
    return out.detach(), torch.autograd.grad((out.float() * weights).sum(), x)[0]


# --- open_clip's transformers


@pytest.mark.parametrize("variant", VARIANTS)
def test_embeddings_and_gradients_are_open_clips(variant):
    visual = tower(**VARIANTS[variant])
    trunk = ClipTrunk(visual)
    for count in (1, 3, 5):
        x = pixels(count)
        out, gradient = with_gradient(trunk, x)
        expected, expected_gradient = with_gradient(visual, x)
        assert out.shape == expected.shape
        assert far(out, expected) < 1e-5
        assert far(gradient, expected_gradient) < 1e-5
        with torch.no_grad():
            assert far(trunk(x), expected) < 1e-5


def test_the_slow_module_is_not_called(no_multihead):
    visual = tower()
    assert vit.why_not(visual) is None
    with_gradient(ClipTrunk(visual), pixels())
    ClipTrunk(visual).tokens(pixels())
    with pytest.raises(AssertionError, match="was called"):
        visual(pixels())


@pytest.mark.parametrize("variant", ["as CLIP has it", "means of places"])
def test_tokens_are_open_clips_and_agree_with_the_embedding(variant):
    visual = tower(**VARIANTS[variant])
    x = pixels(3)
    options = {"indices": [0, 2], "normalize_intermediates": True, "output_extra_tokens": True}
    with torch.no_grad():
        found = vit.forward_intermediates(visual, x, **options)
        expected = visual.forward_intermediates(x, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ClipTrunk(visual).tokens(x)[0], ClipTrunk(visual)(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_as_near_to_float32_as_open_clips(dtype):
    visual = tower()
    x = pixels(4)
    exact, exact_gradient = with_gradient(visual, x)
    small = ClipTrunk(copy.deepcopy(visual)).to(dtype)
    out, gradient = with_gradient(small, x.to(dtype))
    with torch.no_grad():  # gradients or none: the forward has the same numbers
        torch.testing.assert_close(small(x.to(dtype)), out, rtol=0, atol=0)
    theirs, their_gradient = with_gradient(small.visual, x.to(dtype))
    assert out.dtype == dtype
    assert far(out, exact) < 1.5 * far(theirs, exact)
    assert far(gradient, exact_gradient) < 1.5 * far(their_gradient, exact_gradient)


def test_the_backward_made_of_products_is_that_of_attention():
    parts = torch.randn(3, 2, 4, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    q, k, v = (one.clone().requires_grad_() for one in parts)
    out = products._Attention.apply(q, k, v)
    weights = torch.randn(out.shape, dtype=torch.float64)
    found = torch.autograd.grad((out * weights).sum(), (q, k, v))
    expected = torch.autograd.grad((F.scaled_dot_product_attention(q, k, v) * weights).sum(), (q, k, v))
    torch.testing.assert_close(found, expected)


def test_an_autocast_region_is_followed():
    visual = tower()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out, expected = ClipTrunk(visual)(pixels()), visual(pixels())
    assert out.dtype == expected.dtype
    assert far(out, expected) < 2e-2


# --- what is not as open_clip built it


def test_parameters_train_as_open_clips_do():
    visual = tower().requires_grad_(True)
    x = pixels(3)
    gradients = []
    for function in (ClipTrunk(visual), visual):
        visual.zero_grad(set_to_none=True)
        function(x).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in visual.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert far(gradient, gradients[1][name]) < 1e-4, name


@pytest.mark.parametrize("targets", [["c_fc", "c_proj"], ["attn"], ["conv1", "c_fc"]])
def test_adapters_count_and_train(targets):
    peft = pytest.importorskip("peft")
    visual = tower()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # large adapters amplify rounding
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False), visual)
    visual.eval()
    out, expected = ClipTrunk(visual)(pixels()), visual(pixels())
    assert far(out, expected) < 1e-5
    assert far(out, ClipTrunk(tower())(pixels())) > 1e-3
    trained = [parameter for parameter in visual.parameters() if parameter.requires_grad]
    assert len(trained) > 1
    found = torch.autograd.grad(out.square().sum(), trained)
    for gradient, wanted in zip(found, torch.autograd.grad(expected.square().sum(), trained), strict=True):
        assert far(gradient, wanted) < 1e-4


def test_hooks_fire_wherever_they_are():
    inside = ("1", "2.attn", "0.mlp", "0.mlp.c_fc", "2.ln_1", "2.ln_2")
    for name in ("", "transformer", "ln_post", "conv1", *(f"transformer.resblocks.{part}" for part in inside)):
        visual = tower()
        seen = []
        visual.get_submodule(name).register_forward_hook(lambda module, args, out, seen=seen: seen.append(out))
        out = ClipTrunk(visual)(pixels())
        assert far(out, visual(pixels())) < 1e-5
        found, expected = (one[0] if isinstance(one, tuple) else one for one in seen)
        # Of the last layer, what follows its attention sees the class token alone.
        assert far(found, expected[:, : found.shape[1]]) < 1e-5, name


def test_replaced_modules_are_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    visual = tower()
    visual.transformer.resblocks[1].mlp.c_fc.__class__ = Doubled
    assert far(ClipTrunk(visual)(pixels()), visual(pixels())) < 1e-5
    described = encoder_of(visual).describe()
    assert described.path == "fast"
    assert described.reason.startswith("1 of 3 layers hold replaced or hooked modules")


# --- linear layers by oneDNN, as on processors where that is faster


@pytest.fixture
def onednn_linear(monkeypatch):
    """As on a processor where oneDNN is faster; counts its products."""
    if onednn._LINEAR is None:
        pytest.skip("this torch has no oneDNN")
    calls, product = [], onednn._product
    monkeypatch.setattr(onednn, "is_better_here", lambda: True)
    monkeypatch.setattr(onednn, "_product", lambda *args: calls.append(args) or product(*args))
    return calls


def test_onednns_linear_layer_is_torchs(onednn_linear):
    assert onednn._is_exact_here()
    for rows in ((300,), (2, 5), ()):
        x, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((*rows, 96), (64, 96), (64,)))
        onednn_linear.clear()
        out, expected = products.linear(x, weight, bias), F.linear(x, weight, bias)
        assert len(onednn_linear) == 1
        direction = torch.randn_like(out)
        found = torch.autograd.grad(out, (x, weight, bias), direction)
        for gradient, wanted in zip(found, torch.autograd.grad(expected, (x, weight, bias), direction), strict=True):
            assert gradient.shape == wanted.shape
            assert far(gradient, wanted) < 1e-5
        assert far(out, expected) < 1e-5


def test_models_take_onednns_layers(onednn_linear, published):
    visual = tower()
    for function, own, layers in (
        (ClipTrunk(visual), visual, 13),  # 4 a layer, the last one's keys and values apart, and the patches
        (load_encoder(published["dino"][0]).trunk, load_encoder(published["dino"][0]).trunk.model, 8),
        (load_encoder(published["convnext"][0]).trunk, load_encoder(published["convnext"][0]).trunk.visual, 17),
    ):
        function.requires_grad_(False)
        x = pixels(2, 64 if own is not visual else 48)
        onednn_linear.clear()
        with torch.no_grad():
            out = function(x)
        forward = len(onednn_linear)
        assert forward >= layers - 1
        expected, wanted = with_gradient(own, x)
        assert len(onednn_linear) == forward  # the library's module by itself is as it was
        _, gradient = with_gradient(function, x)
        assert far(out, expected) < 1e-5
        assert far(gradient, wanted) < 1e-4


def test_timms_attention_is_differentiated_by_products_in_bfloat16(published, monkeypatch):
    trunk = load_encoder(published["dino"][0]).trunk.bfloat16().requires_grad_(False)
    x = pixels(2, 64).bfloat16()
    out, expected = with_gradient(trunk.model, x)
    calls, backward = [], products._Attention.backward
    monkeypatch.setattr(products, "_slow_backward", lambda q: True)
    monkeypatch.setattr(products._Attention, "backward", lambda ctx, *grads: calls.append(1) or backward(ctx, *grads))
    found, gradient = with_gradient(trunk, x)
    assert len(calls) == len(trunk.model.blocks)
    assert torch.equal(found, out)
    assert far(gradient, expected) < 0.05
    monkeypatch.setattr(products, "_slow_backward", lambda q: False)
    assert far(with_gradient(trunk, x)[1], expected) == 0


def test_attention_that_is_masked_or_scaled_stays_torchs(monkeypatch):
    monkeypatch.setattr(products, "_slow_backward", lambda q: True)
    taken = []
    monkeypatch.setattr(products, "_attend", lambda *heads: taken.append(1) or heads[0])
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    with products.products(q):
        for options in ({"attn_mask": torch.zeros(4, 4)}, {"is_causal": True}, {"scale": 0.1}, {"dropout_p": 0.5}):
            assert F.scaled_dot_product_attention(q, q, q, **options).shape == q.shape
            assert not taken
        F.scaled_dot_product_attention(q, q, q)
        assert taken == [1]


def test_onednn_is_not_asked_for_what_torch_was_told_otherwise(onednn_linear):
    assert onednn._is_exact_here()
    onednn_linear.clear()
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert products.linear(x, weight, None).dtype == torch.bfloat16
    torch.backends.mkldnn.enabled = False
    try:
        products.linear(x, weight, None)
    finally:
        torch.backends.mkldnn.enabled = True
    products.linear(x.double(), weight.double(), None)
    torch.vmap(lambda one: products.linear(one, weight, None))(x)
    assert not onednn_linear


# --- lite


@pytest.fixture
def block_calls(monkeypatch):
    """How often the blocks of `lite` are run by torch's own graph."""
    calls, forward = [], lite._Block.forward
    monkeypatch.setattr(lite._Block, "forward", lambda self, x: calls.append(self) or forward(self, x))
    return calls


@pytest.mark.parametrize("size", [(64, 64), (97, 70)])
def test_lites_gradient_is_that_of_its_graph(metric, block_calls, size):
    trunk = metric.encoder.trunk
    graph = copy.deepcopy(trunk)
    graph.blocks[3].register_forward_hook(lambda *_: None)
    x = pixels(3, 97)[..., : size[0], : size[1]]
    out, gradient = with_gradient(trunk, x)
    assert not block_calls
    expected, wanted = with_gradient(graph, x)
    assert len(block_calls) == 16
    assert far(out, expected) < 1e-5
    assert far(gradient, wanted) < 1e-5
    small, small_graph = (copy.deepcopy(one).bfloat16() for one in (trunk, graph))
    (out, gradient), (theirs, their_gradient) = (with_gradient(one, x.bfloat16()) for one in (small, small_graph))
    assert far(out, expected) < 1.2 * far(theirs, expected)
    assert far(gradient, wanted) < 1.2 * far(their_gradient, wanted)


def test_lite_trains_and_differentiates_twice(block_calls):
    trunk = layouts.randomise(lite.LiteTrunk()).requires_grad_(False)
    x = pixels(1, 64).requires_grad_()
    (gradient,) = torch.autograd.grad(trunk(x).square().sum(), x, create_graph=True)
    (twice,) = torch.autograd.grad(gradient.square().sum(), x)
    trunk.stem.requires_grad_(True)  # outside the blocks: these stay on their way
    trunk(x).sum().backward()
    assert trunk.stem.weight.grad is not None
    block_calls.clear()
    trunk.requires_grad_(True)
    (gradient,) = torch.autograd.grad(trunk(x).square().sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad(gradient.square().sum(), x)
    assert len(block_calls) == 16
    assert far(twice, wanted) < 1e-4


def test_a_backward_inside_an_autocast_region_keeps_the_forwards_type(metric, onednn_linear):
    """Who calls `backward` in such a region gets the gradient of the float32 forward, to the bit."""
    weight, bias = torch.randn(64, 96), torch.randn(64)
    for function, x in (
        (metric.encoder.trunk, pixels(1, 64)),
        (lambda x: products.linear(x, weight, bias), torch.randn(300, 96)),
        (lambda x: products._Attention.apply(x, x, x), torch.randn(1, 2, 5, 8)),
    ):
        x = x.clone().requires_grad_()
        found = []
        for enabled in (False, True):
            total = function(x).square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                found += torch.autograd.grad(total, x)
        assert torch.equal(*found)


def test_adapters_and_others_in_lites_blocks_are_called(metric):
    """What is not a block as this library makes it counts, whether gradients are wanted or not."""
    peft = pytest.importorskip("peft")
    adapted, wrapped = (copy.deepcopy(metric.encoder.trunk) for _ in range(2))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["expand", "project"], r=2, init_lora_weights=False)
        peft.inject_adapter_in_model(config, adapted)
    wrapped.blocks[2].expand = nn.Sequential(wrapped.blocks[2].expand, nn.Hardtanh(-1, 1))
    x = pixels(1, 64)
    for trunk in (adapted, wrapped):
        trunk.eval().requires_grad_(False)
        out, _ = with_gradient(trunk, x)
        with torch.no_grad():
            assert far(out, trunk(x)) < 1e-5
        assert far(out, metric.encoder.trunk(x)) > 1e-2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated:FutureWarning")  # torch's, of forward mode
def test_what_autograd_can_do_with_modules_works(metric, onednn_linear):
    """Gradients in batches, forward mode, no pictures, and the error about weights that were changed in between."""
    trunk = layouts.randomise(lite.LiteTrunk()).requires_grad_(False)
    weight, bias = torch.randn(64, 96), torch.randn(64)
    for function, x in ((trunk, pixels(1, 64)), (lambda x: products.linear(x, weight, bias), torch.randn(300, 96))):
        x = x.clone().requires_grad_()
        out = function(x)
        directions = torch.randn(3, *out.shape)
        (batched,) = torch.autograd.grad(out, x, directions, is_grads_batched=True, retain_graph=True)
        for found, direction in zip(batched, directions, strict=True):
            assert far(found, torch.autograd.grad(out, x, direction, retain_graph=True)[0]) < 1e-4
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
        assert tangent.shape == out.shape
    assert trunk(pixels(1, 64)[:0].requires_grad_()).shape == (0, 1280)
    out = trunk(pixels(1, 64).requires_grad_())
    trunk.blocks[4].project.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# --- the surroundings


def test_describe_says_which_path_and_why():
    encoder = encoder_of(tower())
    assert encoder.describe() == Execution("ViT-B-32", "fast", "", torch.float32, torch.device("cpu"), "contiguous")
    assert encoder.to(torch.bfloat16).describe().dtype == torch.bfloat16
    custom = encoder_of(tower(qk_norm=True)).describe()
    assert (custom.path, custom.reason) == ("open_clip", "none of its layers is open_clip's ResidualAttentionBlock")
    encoder.trunk.visual.set_grad_checkpointing()
    assert encoder.describe().path == "open_clip"
    assert "checkpointing" in encoder.describe().reason
    assert encoder_of(tower()).to("meta").describe().path == "open_clip"
    assert not encoder.describe().compiled
    encoder.compile()
    assert encoder.describe().compiled


def test_weights_keep_their_names_and_encoders_their_copies(published, tmp_path):
    folder, model = published["vit"]
    encoder = load_encoder(folder)
    names = [name.removeprefix("trunk.") for name in encoder.state_dict()]
    assert names == [name for name in model.state_dict() if name.startswith("visual.")]
    x = pixels(2, 64)
    with torch.no_grad():
        before = encoder(x)
        buffer = io.BytesIO()
        torch.save(encoder, buffer)
        buffer.seek(0)
        save_encoder(encoder, tmp_path / "saved")
        for again in (copy.deepcopy(encoder), torch.load(buffer, weights_only=False), load_encoder(tmp_path / "saved")):
            assert torch.equal(again(x), before)
            assert again.describe() == encoder.describe()


def test_compiled_exported_and_vectorised_it_is_the_same():
    encoder = encoder_of(tower())
    x = pixels(2) / 4 + 0.5
    with torch.no_grad():
        expected = encoder(x)
        compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)(x)
        exported = torch.export.export(encoder, (x,)).module()(x)
        vectorised = torch.vmap(lambda one: encoder(one[None])[0])(x)
        jacobian = torch.func.jacrev(encoder)(x[:1])
    for found in (compiled, exported, vectorised):
        assert far(found, expected) < 1e-5
    _, gradient = with_gradient(encoder, x[:1])
    weights = torch.randn(1, 24, generator=torch.Generator().manual_seed(6))
    assert far(torch.einsum("nd,ndmchw->mchw", weights, jacobian), gradient) < 1e-5
    torch.compiler.reset()


def surroundings():
    flags = [getattr(torch.backends.mkldnn, name).fp32_precision for name in ("matmul", "conv", "rnn")]
    return (
        flags, torch.backends.mkldnn.enabled, torch.get_float32_matmul_precision(), torch.get_num_threads(),
        torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(),
        torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(), torch.get_rng_state().tolist(),
    )  # fmt: skip


@pytest.mark.parametrize("better", [False, True])
def test_no_global_state_differs_afterwards_nor_in_other_threads(better, monkeypatch):
    monkeypatch.setattr(onednn, "is_better_here", lambda: better)
    trunk = ClipTrunk(tower())
    fail, during = ClipTrunk(tower()), []
    before = surroundings()

    def stop(module, args):
        during.append(surroundings())
        raise KeyError("stop")

    fail.visual.transformer.resblocks[1].mlp.c_fc.register_forward_pre_hook(stop)
    found = {}

    def work(number):
        for _ in range(5):
            with pytest.raises(KeyError):
                fail(pixels())
            found[number] = with_gradient(trunk, pixels(3))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surroundings() == before
    assert len(during) == 20
    assert all(state == before for state in during)
    for number in range(4):
        torch.testing.assert_close(found[number], found[0], rtol=0, atol=0)
