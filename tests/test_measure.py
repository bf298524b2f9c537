import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.nets import images, tiny
from vix.attention import AttentionSpec, Linformer, NystromAttention, Performer, SoftmaxAttention
from vix.attention.nystrom import Iterate
from vix.backbones import VisionTransformer
from vix.measure import bytes_kept, count_flops, flops, parameters, summary
from vix.systems import SYSTEMS, FNet, ViL, ViT
from vix.tokens import Tokens

B, H, D = 2, 4, 16


def kernel_flops(make: Callable[[AttentionSpec], nn.Module], n: int) -> int:
    """Operations of a forward, for each image and head."""
    place = Tokens((n, 1))
    kernel = make(AttentionSpec(H, D, place, place))
    q, k, v = (torch.zeros(B, H, n, D) for _ in range(3))
    with torch.no_grad():
        total = count_flops(lambda: kernel(q, k, v))
    assert total % (B * H) == 0
    return total // (B * H)


@pytest.mark.parametrize("fused", [True, False])
def test_softmax_is_two_products_of_all_pairs(fused: bool) -> None:
    n = 63
    assert kernel_flops(lambda spec: SoftmaxAttention(spec, fused=fused), n) == 2 * n * n * (D + D)


def test_linformer_shortens_keys_and_values_and_attends_to_the_rest() -> None:
    n, rank = 63, 8
    assert kernel_flops(lambda spec: Linformer(spec, rank=rank), n) == 2 * n * rank * (2 * D) + 2 * n * rank * (2 * D)


def test_performer_makes_features_of_queries_and_keys_and_multiplies_them_once() -> None:
    n, features = 63, 24
    once = 2 * n * features * (2 * D) + 2 * n * features * (2 * D)
    # The denominator is one more column in two products, and what is taken off the keys' exponents one in another.
    assert once <= kernel_flops(lambda spec: Performer(spec, features=features), n) <= once + 2 * n * features * 3


def test_nystrom_grows_by_two_thin_attentions_a_token() -> None:
    landmarks = 8

    def counted(n: int, residual_kernel: int | None) -> int:
        return kernel_flops(
            lambda spec: NystromAttention(spec, num_landmarks=landmarks, residual_kernel=residual_kernel), n
        )

    a_token = 2 * 2 * landmarks * (D + D)
    assert counted(128, None) - counted(64, None) == 64 * a_token
    # Written as a product with a banded matrix, the convolution also multiplies by zeros.
    assert counted(128, 5) - counted(64, 5) >= 64 * (a_token + 2 * 5 * D)
    # What does not grow is the logits, the inverse and its product with a block.
    rest, square, thin = counted(64, None) - 64 * a_token, 2 * landmarks**3, 2 * landmarks**2 * D
    assert rest == thin + 11 * square + 14 * thin


@pytest.mark.parametrize(("kept", "squares"), [(True, 2), (False, 3)])
def test_the_gradient_of_nystrom_s_inverse_costs_two_or_three_products_and_five_thin_ones_a_step(
    monkeypatch: pytest.MonkeyPatch, kept: bool, squares: int
) -> None:
    heads, landmarks, iterations = 3, 8, 6
    monkeypatch.setattr("vix.attention.nystrom.KEEP_POWERS", landmarks if kept else landmarks + 1)
    a, block = torch.rand(heads, landmarks, landmarks), torch.rand(heads, landmarks, D)
    out = Iterate.apply(a.requires_grad_(), block.requires_grad_(), None, iterations, False)
    square, thin = 2 * heads * landmarks**3, 2 * heads * landmarks**2 * D
    # Of the last step eight, and one each of what is around the steps: Z0 on both of its sides, and A A^T.
    expected = (iterations - 1) * (squares * square + 5 * thin) + 8 * thin + 2 * thin + square
    assert count_flops(lambda: out.sum().backward()) == expected


def shell(net: VisionTransformer, *, dim: int = 128, mlp: int = 256, depth: int = 4) -> int:
    """Operations of embedding, feed-forward networks and head at patches of one pixel.

    The last of these networks maps the class token alone.
    """
    grid, of_a_token = net.tokens.grid[0] * net.tokens.grid[1], 2 * 2 * dim * mlp
    return 2 * grid * 3 * dim + ((depth - 1) * net.tokens.count + 1) * of_a_token + 2 * dim * 10


def test_vit_costs_its_projections_its_pairs_and_its_shell() -> None:
    net = ViT(image_size=8)
    n = net.tokens.count

    def attention(queries: int) -> int:
        return 2 * n * 128 * 2 * 128 + 2 * queries * n * 2 * 128 + 2 * 2 * queries * 128 * 128

    flops = shell(net) + 3 * attention(n) + attention(1)
    assert summary(net) == {"parameters": parameters(net), "tokens": 65, "flops": flops}


def test_vil_makes_keys_and_values_of_shortened_tokens_and_none_for_the_class_token_alone() -> None:
    net = ViL(image_size=8, rank=16)
    n, projection = net.tokens.count, 2 * 128 * 128
    of_all = n * 2 * projection + 2 * n * 16 * 2 * 128 + 2 * n * 16 * 128 + 16 * 2 * projection
    # A row a head goes through weights, tokens and matrix for the keys, and back through all three for the values.
    of_one = 4 * projection + 2 * (2 * n * 4 * 128) + 2 * (2 * n * 4 * 16)
    assert summary(net)["flops"] == shell(net) + 3 * of_all + of_one


def test_fnet_costs_its_shell_and_a_transform_a_block() -> None:
    net = FNet(image_size=8)
    n = net.tokens.count
    # Of the last block one token is transformed, the sum of all.
    mixing = (summary(net)["flops"] - shell(net) - 2.5 * 128 * math.log2(128)) / 3
    # A real transform needs half of a complex one; one along the channels may be a dense product with a DFT matrix.
    assert 2.5 * n * 128 * math.log2(n * 128) * 0.99 <= mixing <= 5 * n * 128 * math.log2(n) + 2 * n * 128 * 256


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (lambda x: torch.fft.fft2(x + 0j), 5 * 96 * math.log2(48)),
        (lambda x: torch.fft.fft(x + 0j), 5 * 96 * math.log2(8)),
        (torch.fft.rfft2, 2.5 * 96 * math.log2(48)),
        (torch.fft.fft, 2.5 * 96 * math.log2(8)),
        (lambda x: torch.fft.irfft(x[..., :5] + 0j, n=8), 2.5 * 96 * math.log2(8)),
        (lambda x: torch.fft.fft(x + 0j, n=1), 0),
    ],
    ids=["fft2", "fft", "rfft2", "fft of real", "irfft", "of one value"],
)
def test_a_fourier_transform_costs_five_n_log_n_and_half_of_it_for_real_values(
    transform: Callable[[Tensor], Tensor], expected: float
) -> None:
    x = torch.zeros(2, 6, 8)
    assert count_flops(lambda: transform(x)) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_the_backward_of_a_convolution_costs_twice_its_forward_whatever_its_groups(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d], groups: int
) -> None:
    convolution = kind(4, 8, (3, 1), padding=(1, 0), groups=groups)
    x = torch.zeros(2, 4, 9, 5, requires_grad=True)
    forward = 2 * (2 * 9 * 5) * 4 * 8 * 3 // groups
    assert count_flops(lambda: convolution(x)) == forward
    assert count_flops(lambda: convolution(x).sum().backward()) == 3 * forward


def test_the_first_convolution_has_no_gradient_to_hand_on() -> None:
    convolution, x = nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 8, 8)
    forward = 2 * 2 * 64 * 3 * 8 * 9
    assert count_flops(lambda: convolution(x).sum().backward()) == 2 * forward


def test_a_training_step_of_linear_maps_costs_three_forwards() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 5))
    x = torch.zeros(7, 6, requires_grad=True)
    forward = 2 * 7 * (6 * 8 + 8 * 5)
    assert count_flops(lambda: net(x)) == forward
    assert count_flops(lambda: net(x).sum().backward()) == 3 * forward


def test_a_matrix_times_a_vector_counts() -> None:
    assert count_flops(lambda: torch.zeros(5, 3) @ torch.zeros(3)) == 30


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    ("name", "left", "right", "out"),
    [
        ("addmm", (5, 3), (3, 4), (5, 4)),
        ("addmv", (5, 12), (12,), (5,)),
        ("addbmm", (2, 5, 3), (2, 3, 2), (5, 2)),
        ("baddbmm", (2, 5, 3), (2, 3, 2), (2, 5, 2)),
    ],
)
def test_a_product_counts_that_is_added_to_something(
    name: str, left: tuple[int, ...], right: tuple[int, ...], out: tuple[int, ...], in_place: bool
) -> None:
    add = getattr(torch.zeros(out), name + "_" * in_place)
    assert count_flops(lambda: add(torch.zeros(left), torch.zeros(right))) == 120


def test_the_exact_inverse_counts_its_singular_values() -> None:
    assert count_flops(lambda: torch.linalg.svd(torch.eye(6).expand(2, 6, 6))) == 2 * 26 * 6**3


def test_counting_restores_the_mode_of_every_module() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    net.train()
    net[1].eval()
    flops(net, torch.zeros(2, 3))
    assert [module.training for module in net.modules()] == [True, True, False]


def test_each_storage_that_backward_needs_counts_once() -> None:
    x = torch.ones(10, 4, requires_grad=True)
    weight = torch.ones(4, 4, requires_grad=True)

    values = 10 * 4 * 4
    assert bytes_kept(lambda: x @ weight, [weight]) == values
    assert bytes_kept(lambda: x @ weight) == values + 4 * 4 * 4
    # exp keeps its result, and the product two views of the same.
    assert bytes_kept(lambda: (y := (x @ weight).exp()).flatten() * y.view(-1), [weight]) == 2 * values


def test_a_view_counts_as_the_whole_storage_that_it_keeps_alive() -> None:
    long = torch.ones(100)
    x = torch.ones(3, requires_grad=True)
    assert bytes_kept(lambda: x * long[:3]) == 400


def test_nothing_is_kept_without_gradients() -> None:
    with torch.no_grad():
        assert bytes_kept(lambda: ViT(image_size=8, depth=1)(torch.zeros(1, 3, 8, 8))) == 0


def test_what_a_custom_function_saves_is_seen_and_freed_tensors_are_not_confused() -> None:
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
            ctx.save_for_backward(x.clone())
            return x * 1

        @staticmethod
        def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> Tensor:
            return grad

    x = torch.ones(25, requires_grad=True)
    # The outputs are dropped at once, so that their addresses are free to be used again.
    assert bytes_kept(lambda: [Keeps.apply(x) for _ in range(8)] and None) == 8 * 100


@pytest.mark.parametrize("system", SYSTEMS)
def test_checkpointing_keeps_fewer_bytes(system: str) -> None:
    try:
        net = SYSTEMS[system](image_size=16, num_classes=3)
    except ValueError:
        # A pyramid that shrinks 16 pixels to nothing.
        net = SYSTEMS[system](image_size=64, num_classes=3)
    images = torch.zeros(1, 3, *net.image_size)
    plain = bytes_kept(lambda: net(images), net.parameters())
    net.set_grad_checkpointing()
    assert bytes_kept(lambda: net(images), net.parameters()) < plain


def test_fused_attention_s_backward_counts_its_recomputation() -> None:
    q = torch.zeros(B, H, 32, D, requires_grad=True)
    forward = B * H * 2 * 32 * 32 * 2 * D
    assert count_flops(lambda: functional.scaled_dot_product_attention(q, q, q).sum().backward()) == 3.5 * forward


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_step_of_every_system_can_be_counted(name: str) -> None:
    net = tiny(SYSTEMS[name])
    forward = count_flops(lambda: net(images(net)))
    # Backward costs twice as much, more where it makes something again, less where an image needs no gradient.
    assert 2 * forward < count_flops(lambda: net(images(net)).sum().backward()) < 5 * forward
