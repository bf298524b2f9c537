"""A net at another resolution: what belongs to places is carried over, everything else is as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

import vix
from tests.nets import images, tiny
from vix.mixers import MLPMixing
from vix.resample import places, resample, resample_distances, resample_sum, weights_of
from vix.spec import parameters_of
from vix.tokens import Tokens

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in vix.SYSTEMS} | {
    f"{name} {position}": (name, {"position": position})
    for name, position in [
        ("ViT", "rope"),
        ("ViP", "rope_axial"),
        ("CCT", "sine"),
        ("CCT", "rope"),
        ("CCT", "rope_axial"),
        ("MLPMixer", "learned"),
    ]
}
with_every_variant = pytest.mark.parametrize(("name", "options"), VARIANTS.values(), ids=VARIANTS)


def seeded(name: str, options: dict[str, Any]) -> vix.backbones.Backbone:
    return tiny(vix.SYSTEMS[name], image_size=(16, 12), **options).eval()


@with_every_variant
@torch.no_grad()
def test_the_same_size_gives_the_same_logits(name: str, options: dict[str, Any]) -> None:
    net = seeded(name, options)
    again = net.resized((16, 12))
    assert again is not net
    assert_close(again(images(net)), net(images(net)), rtol=0, atol=0)


@with_every_variant
@torch.no_grad()
def test_another_size_has_the_same_tokens_in_pixels_and_can_be_built_again(name: str, options: dict[str, Any]) -> None:
    net = seeded(name, options)
    state = torch.get_rng_state()
    large = net.resized((32, 24))
    assert torch.equal(torch.get_rng_state(), state)
    assert large.image_size == (32, 24)
    assert large.tokens.grid == tuple(2 * side for side in net.tokens.grid)
    assert not large.training
    batch = images(large)
    assert large(batch).isfinite().all()
    again = vix.build(large.spec).eval()
    again.load_state_dict(large.state_dict())
    assert_close(again(batch), large(batch), rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in vix.SYSTEMS if "patch_size" in parameters_of(vix.SYSTEMS[name])])
def test_a_default_patch_stays_what_it_was(name: str) -> None:
    net = tiny(vix.SYSTEMS[name], image_size=32)
    assert net.resized(64).tokens.grid == (64, 64)


@pytest.mark.parametrize(("old", "new"), [(1, 3), (4, 8), (5, 7), (8, 3), (6, 6)])
def test_the_weights_of_a_row_are_those_of_an_image(old: int, new: int) -> None:
    torch.manual_seed(0)
    image, weights = torch.randn(old, 5, dtype=torch.float64), weights_of(old, new)
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    assert_close(weights @ image, functional.interpolate(image[None, None], (new, 5), **options)[0, 0])
    assert_close(weights.sum(1), torch.ones(new, dtype=torch.float64))


def smooth(count: int) -> Tensor:
    """A slow wave over a grid of `count` by `count` tokens, and its fellow, sampled at the tokens' centres."""
    y, x = torch.meshgrid(*[(torch.arange(count, dtype=torch.float64) + 0.5) / count] * 2, indexing="ij")
    return torch.stack([(2 * y + x).sin(), (y - 3 * x).cos()], dim=-1).flatten(0, 1)


def test_a_smooth_table_is_the_same_wave_on_a_finer_grid() -> None:
    old, new = Tokens((8, 8), 1), Tokens((16, 16), 1)
    extra = torch.tensor([[7.0, -7.0]], dtype=torch.float64)
    table = resample(torch.cat([extra, smooth(8)]), old, new)
    assert_close(table[:1], extra)
    error = (table[1:] - smooth(16)).abs().unflatten(0, (16, 16))
    # Bicubic is exact to second order inside; beyond the border it has nothing to read.
    assert error[4:12, 4:12].max() < 0.005
    assert error.max() < 0.1


@pytest.mark.parametrize("grid", [(16, 16), (12, 20)], ids=str)
def test_sums_over_interpolated_tokens_stay_what_they_were(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    old, new = Tokens((8, 10), 1), Tokens(grid, 1)
    # Noise: nothing is asked to be smooth.
    weights, tokens = (torch.randn(old.count, 3, dtype=torch.float64) for _ in range(2))
    finer = resample_sum(weights, old, new)
    assert_close(finer[:1], weights[:1])
    assert_close(finer.mT @ resample(tokens, old, new), weights.mT @ tokens)
    assert_close(finer.sum(0), weights.sum(0))


@torch.no_grad()
def test_linformer_and_mlp_mixing_are_the_same_for_interpolated_tokens() -> None:
    torch.manual_seed(0)
    old, new = Tokens((4, 6)), Tokens((8, 9))
    small, large = (vix.Linformer(vix.AttentionSpec(2, 4, each, each), rank=3).double() for each in (old, new))
    large.take_from(small)
    k, v = torch.randn(2, 1, 2, old.count, 4, dtype=torch.float64)
    finer = [torch.stack([resample(head, old, new) for head in x[0]])[None] for x in (k, v)]
    q = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    assert_close(large(q, *finer), small(q, k, v))
    mixers = [MLPMixing(4, each, hidden=7).double() for each in (old, new)]
    mixers[1].take_from(mixers[0])
    x = torch.randn(old.count, 4, dtype=torch.float64)
    assert_close(mixers[1](resample(x, old, new)[None], new)[0], resample(mixers[0](x[None], old)[0], old, new))


def test_distances_are_measured_in_the_tokens_of_training() -> None:
    old, new = Tokens((4, 6)), Tokens((8, 12))
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    finer = resample_distances((10 * y + x).reshape(1, -1), old, new).reshape(8, 12)
    assert_close(finer[:7, :11], (10 * torch.arange(7) / 2)[:, None] + torch.arange(11) / 2)
    # Beyond the largest distance of training it stays what it was there.
    assert finer[7, 0] == 30
    coarser = resample_distances((10 * y + x).reshape(1, -1), old, Tokens((2, 3)))
    assert_close(coarser, torch.tensor([[0.0, 2, 4, 20, 22, 24]]))


def test_places_are_centres() -> None:
    assert places(8, 8).tolist() == list(range(8))
    assert places(4, 2).tolist() == [-0.25, 0.25, 0.75, 1.25]


@torch.no_grad()
def test_what_cannot_be_carried_over_is_an_error() -> None:
    with pytest.raises(ValueError, match="patch_size 4x4 does not divide image_size 18x18"):
        tiny(vix.ViT, patch_size=4).resized(18)

    class Fixed(vix.Attention):
        def __init__(self, spec: vix.AttentionSpec) -> None:
            super().__init__(spec)
            self.weight = torch.nn.Parameter(torch.zeros(spec.keys.count))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return v

    with pytest.raises(ValueError, match=r"attention\.weight \(257,\) belongs to 257 tokens .* no way to 1025 tokens"):
        tiny(vix.ViT, attention=Fixed).resized(32)


# Nets whose tokens are pixels, their options, and the epochs after which they have learnt Digits. Convolutions see
# other things in an upscaled image, and Fourier mixing has another spectrum, so those are no subject here.
KEPT = {
    "ViT": (vix.ViT, {}, 12),
    "ViL": (vix.ViL, {"rank": 16}, 6),
    "MLPMixer": (vix.MLPMixer, {}, 6),
}


@pytest.mark.slow
@pytest.mark.parametrize(("system", "options", "epochs"), KEPT.values(), ids=KEPT)
def test_a_trained_net_keeps_its_accuracy_on_the_same_images_upscaled(
    system: type[vix.backbones.Backbone], options: dict[str, Any], epochs: int
) -> None:
    from datamodules import Digits

    data = Digits(batch_size=64)
    data.setup()
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "dim_head": 16, "mlp_dim": 64, "patch_size": 1}
    sizes = {name: value for name, value in sizes.items() if name in parameters_of(system)}
    net = system(image_size=8, channels=1, num_classes=10, **sizes, **options)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for batch in data.train_dataloader():
            loss = functional.cross_entropy(net(data.transform(batch, train=False).images), batch.labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    net.eval()

    def accuracy(of: vix.backbones.Backbone) -> float:
        right = total = 0
        with torch.no_grad():
            for batch in data.test_dataloader():
                pixels = data.transform(batch, train=False).images
                if of.image_size != (8, 8):
                    pixels = functional.interpolate(pixels, of.image_size, mode="bilinear", antialias=True)
                right += int((of(pixels).argmax(-1) == batch.labels).sum())
                total += len(batch.labels)
        return right / total

    native, large = accuracy(net), accuracy(net.resized(16))
    assert native > 0.85
    assert large > native - 0.05
