"""What explain says: implied matrices, rollout, numbers; against the nets themselves and against plain formulas."""

import math
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import vix
from tests.nets import images, tiny
from vix.attention import KERNELS, Attention, AttentionSpec
from vix.backbones import VisionTransformer
from vix.explain import Mixing, Window, capture, effective_rank, explain
from vix.explain import mixing as mixing_module
from vix.explain.capture import of_fourier, of_fourier_map, of_kernel, of_mlp
from vix.mixers import FourierMixing, Mixer, MLPMixing
from vix.tokens import Tokens

SQUARE = AttentionSpec(heads=2, head_dim=8, queries=Tokens((5, 7), 1), keys=Tokens((5, 7), 1))
FEWER_KEYS = AttentionSpec(heads=2, head_dim=8, queries=Tokens((5, 7)), keys=Tokens((3, 4)))
FEWER_QUERIES = AttentionSpec(heads=2, head_dim=8, queries=Tokens((3, 4)), keys=Tokens((5, 7)))
PLACES = {"square": SQUARE, "fewer_keys": FEWER_KEYS, "fewer_queries": FEWER_QUERIES}


def called(kind: type[Attention], spec: AttentionSpec) -> tuple[Attention, Mixing]:
    torch.manual_seed(0)
    kernel = kind(spec, **({} if spec.queries == spec.keys else kind.options_for_other_keys))
    q, k, v = (
        torch.randn(1, spec.heads, tokens.count, width)
        for tokens, width in ((spec.queries, 8), (spec.keys, 8), (spec.keys, 5))
    )
    return kernel, of_kernel(kernel, q, k, v, None, None, "")


def mixings(net: nn.Module, image: Tensor) -> list[Mixing]:
    return [step for step in capture(net, image).steps if isinstance(step, Mixing)]


@pytest.mark.parametrize("kind", KERNELS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_the_implied_matrix_times_the_values_is_the_kernels_output(kind: type[Attention], place: str) -> None:
    _, mixing = called(kind, PLACES[place])
    torch.testing.assert_close(mixing.matrix() @ mixing.values, mixing.apply(mixing.values[None])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KERNELS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_rows_by_a_backward_pass_are_those_of_the_matrix(kind: type[Attention], place: str) -> None:
    _, mixing = called(kind, PLACES[place])
    indices = torch.tensor([0, 3, 11])
    torch.testing.assert_close(mixing.rows(indices), mixing.matrix()[:, indices], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [vix.SoftmaxAttention, vix.Performer], ids=lambda kind: kind.__name__)
def test_rows_of_a_mean_sum_to_one_and_have_no_negative_weight(kind: type[Attention]) -> None:
    matrix = called(kind, SQUARE)[1].matrix()
    torch.testing.assert_close(matrix.sum(dim=-1), torch.ones(matrix.shape[:-1]))
    assert matrix.min() >= 0


def test_rows_of_nystroms_attention_sum_to_one_with_the_exact_inverse_and_no_convolution() -> None:
    torch.manual_seed(0)
    kernel = vix.NystromAttention(SQUARE, num_landmarks=6, iterations=None, residual_kernel=None)
    q, k, v = torch.randn(3, 1, 2, 36, 8).double()
    matrix = of_kernel(kernel, q, k, v, None, None, "").matrix()
    torch.testing.assert_close(matrix.sum(dim=-1), torch.ones(2, 36).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in vix.SYSTEMS if "Mixer" not in name])
def test_what_is_captured_is_what_the_layers_did(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=8)
    image = images(net, 1)[0]
    outputs: dict[str, Tensor] = {}
    # The positions of LeViX's values are added outside of the kernel, and have a bias.
    for layer in (layers := mixings(net, image)):
        path = layer.name.removesuffix(".attention") + ".activation" if name.startswith("Le") else layer.name
        take_output(net.get_submodule(path), layer, outputs, given=name.startswith("Le"))
        if layer.added is not None and name.startswith("Le"):
            make_alike(net.get_submodule(layer.name.removesuffix(".attention")).value_position, len(layer.heads))
    layers = mixings(net, image)
    net.eval()(image[None])
    # A matrix calls the kernel again.
    wanted = dict(outputs)
    for layer in layers:
        mixed = layer.matrix() @ layer.values
        mixed = mixed.sum(dim=0) if "FNet" in name else mixed
        # FNet's values are sums over all channels.
        torch.testing.assert_close(mixed, wanted[layer.name], rtol=0, atol=1e-4 if "FNet" in name else 1e-5)


def take_output(module: nn.Module, layer: Mixing, outputs: dict[str, Tensor], *, given: bool) -> None:
    def keep(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        outputs[layer.name] = rearrange(args[0], "1 n (h e) -> h n e", h=len(layer.heads)) if given else out[0]

    module.register_forward_hook(keep)


def make_alike(convolution: nn.Module, heads: int) -> None:
    """Gives the channels of a head one filter, and no bias, so that the head's mean is exact."""
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.bias.zero_()
        filters = rearrange(convolution.weight, "(h e) 1 i j -> h e i j", h=heads)
        filters.copy_(filters[:, :1].clone().expand_as(filters))


def test_fourier_mixing_is_a_head_of_cosines_and_a_head_of_sines() -> None:
    tokens, x = Tokens((3, 4), 1), torch.randn(1, 13, 6)
    taken = of_fourier(x, tokens, "")
    angles = 2 * math.pi * torch.arange(13.0).outer(torch.arange(13.0)) / 13
    torch.testing.assert_close(taken.matrix(), torch.stack([angles.cos(), angles.sin()]), rtol=0, atol=1e-5)
    out = (taken.matrix() @ taken.values).sum(dim=0)
    torch.testing.assert_close(out, FourierMixing(6, tokens)(x, tokens)[0], rtol=0, atol=1e-5)


def test_fourier_mixing_of_a_map_has_waves_over_rows_and_columns() -> None:
    x = torch.randn(1, 4, 3, 5)
    taken = of_fourier_map(x, "")
    out = (taken.matrix() @ taken.values).sum(dim=0)
    wanted = torch.fft.fftn(x, dim=(1, 2, 3)).real[0]
    torch.testing.assert_close(out, rearrange(wanted, "c y x -> (y x) c"), rtol=0, atol=1e-5)


def test_mlp_mixing_is_linear_for_fixed_gates_and_its_matrix_is_the_mean_over_channels() -> None:
    torch.manual_seed(0)
    tokens = Tokens((3, 4))
    mixer, x = MLPMixing(6, tokens, hidden=10), torch.randn(1, 12, 6)
    network = mixer.network
    hidden = network.expand(x.mT)[0]
    gates = torch.distributions.Normal(0.0, 1.0).cdf(hidden)
    matrices = torch.einsum("nt,ct,tm->cnm", network.contract.weight, gates, network.expand.weight)
    biases = torch.einsum("nt,ct,t->nc", network.contract.weight, gates, network.expand.bias)
    out = torch.einsum("cnm,mc->nc", matrices, x[0]) + biases + network.contract.bias[:, None]
    torch.testing.assert_close(out, mixer(x, tokens)[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(of_mlp(mixer, x, tokens, "").matrix()[0], matrices.mean(dim=0), rtol=0, atol=1e-5)


def test_the_rollout_of_softmax_is_the_textbooks() -> None:
    net = tiny(vix.ViT, depth=3, image_size=8)
    image = images(net, 1)[0]
    # Abnar and Zuidema: the product of (A + I) / 2, A the mean of the heads, from the last layer down to the first.
    product = torch.eye(net.tokens.count)
    for layer in mixings(net, image):
        product = (layer.matrix().mean(dim=0) + torch.eye(net.tokens.count)) / 2 @ product
    found = explain(net, image)
    row = product[0, 1:].unflatten(0, (8, 8))
    torch.testing.assert_close(found.rollout, row / row.sum(), rtol=1e-5, atol=1e-7)
    assert found.on_class_token == pytest.approx(product[0, 0].item(), abs=1e-6)


def test_the_rollout_of_levit_shrinks_with_its_grid() -> None:
    net = tiny(vix.LeViT, image_size=8)
    image = images(net, 1)[0]
    # One block, one that leads from 64 tokens to 16 and has no residual, one block; the mean over tokens is classified.
    first, shrinking, last = (layer.matrix().mean(dim=0) for layer in mixings(net, image))
    product = (last + torch.eye(16)) / 2 @ shrinking @ ((first + torch.eye(64)) / 2)
    torch.testing.assert_close(explain(net, image).rollout.flatten(), product.mean(dim=0), rtol=1e-5, atol=1e-7)


def test_the_rollout_of_cct_starts_from_the_pooling_weights() -> None:
    net = tiny(vix.CCT, image_size=8, depth=1)
    image = images(net, 1)[0]
    (layer,) = mixings(net, image)
    net.eval()
    features = net.norm(net.forward_features(image[None]))
    weights = net.pool.weigh(features)[0, :, 0].softmax(dim=0)
    row = weights @ (layer.matrix().mean(dim=0) + torch.eye(64)) / 2
    torch.testing.assert_close(explain(net, image).rollout.flatten(), row, rtol=1e-5, atol=1e-7)


def test_windows_hand_weights_on_to_the_places_that_they_cover() -> None:
    window = Window(torch.ones(3, 3), 2, 1, Tokens((4, 4), 1), Tokens((2, 2), 1))
    # The window of the first place covers four of the map's places, that of the last nine.
    pulled = window.pull(torch.tensor([0.5, 0.2, 0.0, 0.0, 0.3]))
    wanted = torch.zeros(4, 4)
    wanted[:2, :2] += 0.2 / 4
    wanted[1:, 1:] += 0.3 / 9
    torch.testing.assert_close(pulled, torch.cat([torch.tensor([0.5]), wanted.flatten()]))


@pytest.mark.parametrize("name", [*vix.SYSTEMS, "FNet2D"])
def test_every_system_is_explained_and_stays_as_it_was(name: str) -> None:
    net = (
        vix.FNet2D(image_size=8, dim=4, depth=1, mlp_dim=8)
        if name == "FNet2D"
        else tiny(vix.SYSTEMS[name], image_size=8)
    )
    image = images(net, 1)[0]
    found = explain(net, image)
    assert found.rollout.shape == (8, 8)
    assert found.rollout.sum().item() == pytest.approx(1, abs=1e-4)
    assert found.rollout.min() >= 0
    for layer in found.layers:
        assert layer.maps.shape == (len(layer.mixing.heads), *layer.mixing.keys.grid)
        for name_of, values in layer.statistics.items():
            assert values.shape == (len(layer.mixing.heads),), name_of
            assert values.isfinite().all(), name_of
    assert net.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())


def test_images_of_oblong_shape_are_explained() -> None:
    net = tiny(vix.CvN, image_size=(16, 8))
    found = explain(net, images(net, 1)[0])
    assert found.rollout.shape == (16, 8)


def test_numbers_are_the_plain_formulas() -> None:
    net = tiny(vix.ViP, depth=1, image_size=8)
    found = explain(net, images(net, 1)[0])
    (layer,) = found.layers
    matrix, values = layer.mixing.matrix(), layer.mixing.values
    exact = layer.mixing.exact(torch.arange(65))
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    places = torch.stack([y, x], dim=-1).flatten(0, 1)
    apart = torch.cdist(places, places)
    among = matrix[:, 1:, 1:] / matrix[:, 1:, 1:].sum(dim=-1, keepdim=True)
    wanted = {
        "entropy": -(matrix * matrix.log()).sum(dim=-1).mean(dim=-1),
        "distance": (among * apart).sum(dim=-1).mean(dim=-1),
        "matrix_error": (matrix - exact).norm(dim=(-2, -1)) / exact.norm(dim=(-2, -1)),
        "output_error": ((matrix - exact) @ values).norm(dim=(-2, -1)) / (exact @ values).norm(dim=(-2, -1)),
        "row_sum": torch.ones(2),
        "negative": torch.zeros(2),
    }
    for name, value in wanted.items():
        torch.testing.assert_close(layer.statistics[name], value, rtol=1e-4, atol=1e-5)
    assert layer.uniform == {
        "entropy": pytest.approx(math.log(65)),
        "distance": pytest.approx(apart.mean().item(), rel=1e-5),
    }


def test_the_error_is_of_attention_without_the_convolution_of_values() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 36, 8)
    # With a landmark for each token and the exact inverse Nyström attention is softmax attention.
    kernel = vix.NystromAttention(SQUARE, num_landmarks=36, iterations=None)
    mixing = of_kernel(kernel.double(), q.double(), k.double(), v.double(), None, None, "")
    indices = torch.arange(36)
    alone = mixing.attention_rows(indices, mixing.rows(indices))
    torch.testing.assert_close(alone, mixing.exact(indices), rtol=0, atol=1e-6)
    assert not torch.allclose(mixing.rows(indices), alone)


def test_the_effective_rank_counts_directions() -> None:
    torch.testing.assert_close(effective_rank(torch.eye(7)[None]), torch.tensor([7.0]))
    torch.testing.assert_close(effective_rank(torch.ones(1, 5, 9)), torch.tensor([1.0]), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["ViT", "ViN", "FNet", "LeViP", "CvN"])
def test_parts_say_the_same_as_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=8)
    image = images(net, 1)[0]
    whole = explain(net, image)
    monkeypatch.setattr(mixing_module, "AT_ONCE", 3000)
    parts = explain(net, image)
    torch.testing.assert_close(parts.rollout, whole.rollout, rtol=1e-4, atol=1e-6)
    for one, other in zip(parts.layers, whole.layers, strict=True):
        torch.testing.assert_close(one.maps, other.maps, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(one.statistics, other.statistics, rtol=1e-3, atol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that anything makes."""

    numbers = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT", "ViP", "ViN"])
def test_at_4096_tokens_no_matrix_is_built(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=64, patch_size=1, depth=1)
    with Largest() as largest:
        found = explain(net, images(net, 1)[0])
    assert found.rollout.shape == (64, 64)
    # One head's matrix would have 4,097 x 4,097 numbers.
    assert largest.numbers < 4097**2


def test_a_net_without_mixing_is_refused() -> None:
    with pytest.raises(ValueError, match="Flatten has no attention"):
        explain(nn.Flatten(), torch.zeros(1, 4, 4))


def test_an_unknown_mixer_is_refused_by_name() -> None:
    class Shift(Mixer):
        def __init__(self, dim: int, tokens: Tokens) -> None:
            super().__init__()

        def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
            return x.roll(1, dims=1)

    net = VisionTransformer(mixer=Shift, image_size=8, dim=8, depth=1, mlp_dim=8)
    with pytest.raises(ValueError, match=r"Shift \(blocks.0.mixer\) is a mixer"):
        explain(net, torch.zeros(3, 8, 8))


def test_another_size_than_the_nets_is_refused() -> None:
    net = tiny(vix.ViT, image_size=8, position="rope")
    with pytest.raises(ValueError, match="build it for the size of the image"):
        explain(net, torch.zeros(3, 16, 16))
