"""Self-attention: its projections, whom they serve, and what the kernel is handed."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests import reference
from vix import Attention, Linformer, NystromAttention, Performer
from vix.mixers import SelfAttention
from vix.tokens import Tokens

DIM, TOKENS = 12, Tokens((3, 4), prefix=1)


class Handed(Attention):
    """Remembers what it was given and returns the values, a head for each query's."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.given = (q, k, v)
        return v.expand(-1, q.shape[1], -1, -1)


class HandedOneHead(Handed):
    accepts_one_kv_head = True


def attend(**options: Any) -> tuple[SelfAttention, Tensor]:
    torch.manual_seed(0)
    mixer = SelfAttention(DIM, TOKENS, **{"heads": 2, "dim_head": 8, **options}).double()
    return mixer, torch.randn(2, TOKENS.count, DIM, dtype=torch.float64)


def test_it_is_softmax_attention_head_by_head() -> None:
    mixer, x = attend()
    expected = reference.self_attention(x, 2, mixer.project.weight, mixer.output.weight, mixer.output.bias)
    assert_close(mixer(x, TOKENS), expected)


@pytest.mark.parametrize(("heads", "dim_head"), [(1, DIM), (3, 4), (5, 2), (2, 32)])
def test_heads_and_their_width_need_not_make_up_the_width_of_a_token(heads: int, dim_head: int) -> None:
    mixer, x = attend(heads=heads, dim_head=dim_head)
    assert mixer.project.out_features == 3 * heads * dim_head
    expected = reference.self_attention(x, heads, mixer.project.weight, mixer.output.weight, mixer.output.bias)
    assert_close(mixer(x, TOKENS), expected)


@pytest.mark.parametrize("rotary", ["rope", "rope_axial"])
def test_queries_and_keys_are_turned_and_values_are_not(rotary: str) -> None:
    plain, x = attend(attention=Handed)
    turned, _ = attend(attention=Handed, rotary=rotary)
    turned.load_state_dict(plain.state_dict())
    assert_close(turned(x, TOKENS), plain(x, TOKENS))
    angles = reference.rope_angles(13, 8) if rotary == "rope" else reference.rope_axial_angles(3, 4, 1, 8)
    (q, k, v), (unturned_q, unturned_k, unturned_v) = turned.attention.given, plain.attention.given
    # The tables are float32.
    assert_close(q, reference.turned(unturned_q, angles), atol=1e-6, rtol=1e-6)
    assert_close(k, reference.turned(unturned_k, angles), atol=1e-6, rtol=1e-6)
    assert_close(v, unturned_v)


def test_shared_values_are_the_keys_before_rotation() -> None:
    mixer, x = attend(attention=Handed, rotary="rope", share_kv=True)
    mixer(x, TOKENS)
    _, k, v = mixer.attention.given
    assert mixer.project.out_features == 2 * 2 * 8
    assert_close(k, reference.turned(v, reference.rope_angles(13, 8)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("attention", "kv_heads"), [(Handed, 2), (HandedOneHead, 1)], ids=["repeated", "single"])
def test_one_head_of_keys_and_values_serves_all_queries(attention: type[Attention], kv_heads: int) -> None:
    mixer, x = attend(attention=attention, one_kv_head=True)
    out = mixer(x, TOKENS)
    assert mixer.project.out_features == (2 + 1 + 1) * 8
    assert [given.shape[1] for given in mixer.attention.given] == [2, kv_heads, kv_heads]
    _, k, v = mixer.attention.given
    assert_close(k[:, :1].expand(-1, 2, -1, -1), k.expand(-1, 2, -1, -1))
    assert_close(out, mixer.output(torch.cat([v[:, 0], v[:, 0]], dim=-1)))


def test_biases_are_where_they_are_asked_for() -> None:
    assert attend()[0].project.bias is None
    assert attend(qkv_bias=True)[0].project.bias.shape == (48,)
    assert attend()[0].output.bias.shape == (DIM,)


def test_dropout_is_of_the_output_and_in_training_only() -> None:
    mixer, x = attend(dropout=0.5)
    mixer.train()
    out = mixer(x, TOKENS)
    zeros = (out == 0).double().mean().item()
    assert zeros == pytest.approx(0.5, abs=0.1)
    mixer.eval()
    assert_close(mixer(x, TOKENS), mixer(x, TOKENS), rtol=0, atol=0)
    assert_close(out, torch.where(out == 0, 0.0, 2 * mixer(x, TOKENS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 0}, "heads must be a positive whole number, got 0"),
        ({"dim_head": -1}, "dim_head must be a positive whole number, got -1"),
        ({"dim_head": 7, "rotary": "rope"}, "'rope' turns pairs, so dim_head must be a multiple of 2, got 7"),
        ({"dim_head": 6, "rotary": "rope_axial"}, "'rope_axial' .* multiple of 4, got 6"),
    ],
)
def test_impossible_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attend(**options)


@pytest.mark.parametrize("kernel", [Linformer, Performer, NystromAttention])
def test_a_kernel_is_told_its_place(kernel: type[Attention]) -> None:
    mixer, _ = attend(attention=kernel)
    spec = mixer.attention.spec
    assert (spec.heads, spec.head_dim, spec.queries, spec.keys) == (2, 8, TOKENS, TOKENS)


@pytest.mark.parametrize(
    "options", [{}, {"share_kv": True}, {"one_kv_head": True, "share_kv": True, "dim_head": 16}], ids=str
)
@pytest.mark.parametrize("share_projection", [True, False])
@pytest.mark.parametrize("rank", [3, 9])
@pytest.mark.parametrize("count", [None, 1, 2])
def test_shortening_tokens_before_they_are_keys_changes_nothing_but_the_work(
    options: dict[str, Any], share_projection: bool, rank: int, count: int | None
) -> None:
    mixer, x = attend(attention=partial(Linformer, rank=rank, share_projection=share_projection), **options)
    assert mixer.shortening() is mixer.attention
    inputs = [x.requires_grad_(), *mixer.parameters()]
    out = mixer(x, TOKENS) if count is None else mixer.first(x, TOKENS, count)
    called: list[Tensor] = []
    handle = mixer.attention.register_forward_pre_hook(lambda _, given: called.extend(given))
    # A hook on the kernel sees all keys, so they are made.
    expected = mixer(x, TOKENS)[:, :count]
    handle.remove()
    assert called[1].shape[-2] == TOKENS.count
    assert_close(out, expected)
    cotangent = torch.randn_like(out)
    assert_close(torch.autograd.grad(out, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent))


@pytest.mark.parametrize(
    "register", ["register_forward_pre_hook", "register_forward_hook", "register_full_backward_hook"]
)
def test_every_hook_on_a_kernel_is_called(register: str) -> None:
    mixer, x = attend(attention=partial(Linformer, rank=3))
    calls: list[nn.Module] = []
    getattr(mixer.attention, register)(lambda kernel, *_: calls.append(kernel))
    mixer(x, TOKENS).sum().backward()
    assert calls == [mixer.attention]


@pytest.mark.parametrize(
    "options",
    [{"rotary": "rope"}, {"qkv_bias": True}, {"one_kv_head": True, "share_kv": True, "dim_head": 2}],
    ids=["rotations", "biases", "one narrow head"],
)
def test_keys_are_made_of_all_tokens_where_that_is_another_function_or_less_work(options: dict[str, Any]) -> None:
    assert attend(attention=Linformer, **options)[0].shortening() is None
    assert attend(attention=Linformer)[0].shortening() is not None
    assert attend()[0].shortening() is None
