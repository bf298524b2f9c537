import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from datamodules.draws import Draws
from datamodules.transforms.mixing import Mixing, cutmix, mixup, symmetric_beta


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0])
def test_weights_have_the_beta_distribution(alpha: float) -> None:
    weights = symmetric_beta(Draws(0, 0, torch.arange(5000)).uniform("weights", 2), alpha)
    assert ((weights >= 0) & (weights <= 1)).all()
    assert stats.kstest(weights.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.01


def test_mixup_equals_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.rand(6, 3, 8, 8), torch.arange(6)
    expected = v2.MixUp(num_classes=6).transform(images, {"lam": 0.3, "labels": labels, "batch_size": 6})
    torch.testing.assert_close(mixup(images, torch.full((6,), 0.3)), expected)
    monkeypatch.setattr("datamodules.transforms.mixing.symmetric_beta", lambda uniform, alpha: torch.full((6,), 0.3))
    _, targets = Mixing(1.0, 0.0, 6)(images, labels, Draws(0, 0, labels))
    one_hot = torch.eye(6)
    torch.testing.assert_close(targets, 0.3 * one_hot + 0.7 * one_hot.roll(1, 0))


def test_cutmix_pastes_a_box_of_the_neighbour_and_weighs_by_its_real_area() -> None:
    images = torch.arange(1.0, 9.0)[:, None, None, None].expand(8, 3, 20, 30)
    weight = torch.linspace(0, 1, 8)
    centre = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.99, 0.2], [0.3, 0.99]] * 2)
    mixed, kept = cutmix(images, weight, centre)
    pasted = mixed != images
    assert mixed[pasted].equal(images.roll(1, 0)[pasted])
    torch.testing.assert_close(kept, 1 - pasted[:, 0].double().mean((1, 2)))
    # in the middle nothing is cut off, so the area is right to a pixel on each side
    assert kept[1] == pytest.approx(float(weight[1]), abs=0.15)
    assert kept[7] == 1


@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_labels_say_what_the_image_is_made_of(alpha: float, beta: float) -> None:
    # every image is its own label, as a constant picture of a one-hot code
    labels = torch.arange(10).repeat(8)
    codes = torch.eye(10)[labels]
    images = codes[:, :, None, None].expand(-1, -1, 40, 40)
    mixed, targets = Mixing(alpha, beta, 10)(images, labels, Draws(0, 1, torch.arange(80)))
    torch.testing.assert_close(targets, mixed.mean((2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(80))
    assert len(targets.max(1).values.unique()) > 40


def test_of_both_each_image_has_one() -> None:
    labels = torch.arange(400) % 10
    images = torch.eye(10)[labels][:, :, None, None].expand(-1, -1, 16, 16)
    mixed, _ = Mixing(0.8, 1.0, 10)(images, labels, Draws(0, 0, torch.arange(400)))
    # a pasted image has only whole values
    whole = ((mixed == 0) | (mixed == 1)).flatten(1).all(1).float().mean()
    assert 0.4 < whole < 0.62


def test_negative_alphas_are_refused() -> None:
    with pytest.raises(ValueError, match="cutmix must be at least 0, got -1"):
        Mixing(0.0, -1.0, 10)
