import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from datamodules.draws import Draws
from datamodules.transforms import Augment, Pipeline

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
EVERYTHING = Augment(
    crop=2, flip=0.5, rotate=10, randaugment=(2, 9), trivialaugment=True, erase=0.5, mixup=0.8, cutmix=1
)


def pipeline(augment: Augment) -> Pipeline:
    return Pipeline(augment, (16, 16), MEAN, STD, 10)


def batch(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=generator)
    return images, torch.arange(count) % 10


def test_normalising_equals_torchvision() -> None:
    images, _ = batch()
    result = pipeline(Augment()).normalise(images)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, reference.normalize(images.float() / 255, [*MEAN], [*STD]), atol=2e-6, rtol=0)


def test_nothing_is_on_by_default() -> None:
    images, labels = batch()
    off = pipeline(Augment())
    result, same = off(images, labels, Draws(0, 0, labels))
    assert Augment().active == ()
    assert result.equal(off.normalise(images))
    assert same.equal(labels)


@pytest.mark.parametrize("name", EVERYTHING.active)
def test_every_switch_changes_images_and_another_epoch_changes_them_anew(name: str) -> None:
    one = Augment(**{name: getattr(EVERYTHING, name)})
    images, labels = batch()
    results = [pipeline(one)(images, labels, Draws(0, epoch, torch.arange(64)))[0] for epoch in (0, 0, 1)]
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])
    assert not results[0].equal(pipeline(Augment()).normalise(images))


def test_images_of_a_batch_never_share_a_coin() -> None:
    images, labels = batch(1)
    results, _ = pipeline(Augment(crop=4, flip=0.5))(
        images.expand(256, -1, -1, -1), labels.expand(256), Draws(0, 0, torch.arange(256))
    )
    # 81 places and two sides: 256 throws hit about 128 of these 162
    assert len(results.flatten(1).unique(dim=0)) > 100


@pytest.mark.parametrize(
    ("name", "least"),
    # of 256 images: places and sides, angles, pairs of operations with signs, operations with magnitudes, rectangles
    # on half of them, weights, boxes
    {
        "crop": 70,
        "rotate": 200,
        "randaugment": 70,
        "trivialaugment": 100,
        "erase": 90,
        "mixup": 240,
        "cutmix": 150,
    }.items(),
)
def test_every_image_of_a_batch_has_draws_of_its_own(name: str, least: int) -> None:
    images, _ = batch(2)
    # two images in turn: a neighbour that is the same would hide what was mixed
    rows = torch.arange(256) % 2
    one = Augment(**{name: getattr(EVERYTHING, name) if name != "crop" else 4})
    results, _ = pipeline(one)(images[rows], rows, Draws(0, 0, torch.arange(256)))
    assert sum(len(results[side::2].flatten(1).unique(dim=0)) for side in (0, 1)) >= least


def test_the_batch_out_of_the_loader_stays_as_it_was() -> None:
    images, labels = batch()
    before = images.clone()
    pipeline(EVERYTHING)(images, labels, Draws(0, 0, torch.arange(64)))
    assert images.equal(before)


def test_what_does_not_depend_on_mates_does_not_depend_on_the_batch() -> None:
    alone = Augment(
        **{name: getattr(EVERYTHING, name) for name in EVERYTHING.active if name not in ("mixup", "cutmix")}
    )
    images, labels = batch()
    together, _ = pipeline(alone)(images, labels, Draws(7, 2, torch.arange(64)))
    for rows in torch.arange(64).split(9):
        some, _ = pipeline(alone)(images[rows], labels[rows], Draws(7, 2, rows))
        assert some.equal(together[rows])


def test_only_what_is_valid_is_kept() -> None:
    assert EVERYTHING.only(frozenset({"crop", "erase"})) == Augment(crop=2, erase=0.5)


def test_a_crop_that_loses_the_subject_is_refused() -> None:
    with pytest.raises(ValueError, match=r"augment.crop must be at most 4, a quarter of the image's side, got 5"):
        pipeline(Augment(crop=5))
