import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from datamodules.draws import Draws
from datamodules.transforms.policies import OPERATIONS, SIGNED, RandAugment, TrivialAugmentWide, apply, strengths


def images(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def expected(image: Tensor, name: str, strength: float) -> Tensor:
    """What torchvision's policies do with one image."""
    return v2.RandAugment()._apply_image_or_video_transform(image, name, strength, "nearest", {Tensor: None})


@pytest.mark.parametrize("wide", [False, True], ids=["RandAugment", "TrivialAugmentWide"])
@pytest.mark.parametrize("size", [(32, 32), (64, 48)], ids=str)
def test_operations_and_their_ranges_are_those_of_torchvision(wide: bool, size: tuple[int, int]) -> None:
    space = (v2.TrivialAugmentWide if wide else v2.RandAugment)._AUGMENTATION_SPACE
    assert set(space) == set(OPERATIONS)
    table = strengths(wide, *size)
    for row, name in enumerate(OPERATIONS):
        magnitudes, signed = space[name]
        values = magnitudes(31, *size)
        assert table[row].equal(torch.zeros(31).double() if values is None else values.double())
        assert (name in SIGNED) == signed


@pytest.mark.parametrize("wide", [False, True], ids=["RandAugment", "TrivialAugmentWide"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_at_every_magnitude_equals_torchvision(name: str, wide: bool) -> None:
    strength = strengths(wide, 32, 32)[OPERATIONS.index(name)]
    if name in SIGNED:
        strength = torch.cat([strength, -strength])
    batch = images(len(strength))
    results = apply(batch, torch.full((len(batch),), OPERATIONS.index(name)), strength)
    exact = torch.stack([expected(image, name, float(s)) for image, s in zip(batch, strength, strict=True)])
    if name not in ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"):
        torch.testing.assert_close(results, exact, atol=1, rtol=0)
    # one level after a blend, another pixel at a tie
    assert (results != exact).float().mean() < 0.005


def test_images_with_different_operations_do_not_touch_each_other() -> None:
    batch, operations = images(56), torch.arange(56) % len(OPERATIONS)
    strength = strengths(False, 32, 32)[operations, 9]
    together = apply(batch, operations, strength)
    for row in range(56):
        one = slice(row, row + 1)
        assert apply(batch[one], operations[one], strength[one])[0].equal(together[row])


def test_the_batch_it_is_given_stays_as_it_was() -> None:
    batch = images(28)
    before = batch.clone()
    apply(batch, torch.arange(28) % 14, strengths(False, 32, 32)[torch.arange(28) % 14, 9])
    assert batch.equal(before)


@pytest.mark.parametrize("policy", [RandAugment(2, 9), TrivialAugmentWide()], ids=["RandAugment", "TrivialAugmentWide"])
def test_every_image_draws_its_own_operations(policy: RandAugment | TrivialAugmentWide) -> None:
    same = images(1).expand(256, -1, -1, -1)
    results = policy(same, Draws(0, 0, torch.arange(256)))
    assert len(results.flatten(1).unique(dim=0)) > 100


@pytest.mark.parametrize("policy", [RandAugment(2, 9), TrivialAugmentWide()], ids=["RandAugment", "TrivialAugmentWide"])
def test_a_result_does_not_depend_on_the_batch(policy: RandAugment | TrivialAugmentWide) -> None:
    batch, indices = images(64), torch.arange(64) * 7
    together = policy(batch, Draws(3, 5, indices))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for rows in order.split(13):
        assert policy(batch[rows], Draws(3, 5, indices[rows])).equal(together[rows])


def test_all_operations_are_drawn_equally_often_and_both_signs() -> None:
    # brightness tells its sign, on a grey image, by the side of the grey it comes out on
    grey = torch.full((1, 3, 8, 8), 128, dtype=torch.uint8).expand(4000, -1, -1, -1)
    results = RandAugment(1, 9)(grey, Draws(0, 0, torch.arange(4000)))[:, 0, 4, 4]
    brighter, darker = int((results > 140).sum()), int((results < 120).sum())
    # of 4,000, a fourteenth is brightness, of which each sign is half: 143, standard deviation 12
    assert 95 < brighter < 191
    assert 95 < darker < 191


@pytest.mark.parametrize("arguments", [{"num_ops": 0}, {"magnitude": 31}, {"magnitude": -1}], ids=str)
def test_impossible_arguments_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        RandAugment(**arguments)
