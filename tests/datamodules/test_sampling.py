import pytest
import torch
from torch import Tensor

from datamodules.sampling import BatchOrder, fixed_test_cut, stratified_cut, stratified_subset

LABELS = torch.arange(10).repeat(100)
UNEVEN = torch.cat([torch.full((size,), label) for label, size in enumerate([300, 40, 7, 1])])


def order(size: int = 103, **changes: int | bool) -> BatchOrder:
    rows = torch.arange(size)
    arguments = {"batch_size": 8, "train": True, "shuffle": True, "seed": 0} | changes
    return BatchOrder(rows, rows * 3 + 1, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.37])
@pytest.mark.parametrize("labels", [LABELS, UNEVEN], ids=["even", "uneven"])
def test_a_cut_is_a_partition_in_proportion_of_the_classes(labels: Tensor, fraction: float) -> None:
    stay, cut = stratified_cut(labels, torch.arange(len(labels)), fraction, seed=0, stream="validation")
    assert torch.cat([stay, cut]).sort().values.equal(torch.arange(len(labels)))
    assert len(cut) == round(fraction * len(labels))
    assert ((labels[cut].bincount(minlength=4) - fraction * labels.bincount()).abs() <= 1).all()
    # a class of one image stays where it can be learnt
    assert (labels[stay].bincount(minlength=4) > 0).all()


def test_a_cut_depends_on_its_seed_and_stream() -> None:
    cuts = [
        stratified_cut(LABELS, torch.arange(1000), 0.1, seed=seed, stream=stream)[1]
        for seed, stream in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))
    ]
    assert cuts[0].equal(cuts[1])
    assert not cuts[0].equal(cuts[2])
    assert not cuts[0].equal(cuts[3])


def test_the_fixed_test_split_stays_what_it_is() -> None:
    assert fixed_test_cut(torch.arange(3).repeat(5))[1].tolist() == [5, 6, 7]


@pytest.mark.parametrize("labels", [LABELS, UNEVEN], ids=["even", "uneven"])
def test_subsets_are_nested_and_stratified(labels: Tensor) -> None:
    previous: set[int] = set()
    for fraction in (0.01, 0.02, 0.05, 0.1, 0.11, 0.25, 0.5, 0.9, 1.0):
        rows = stratified_subset(labels, torch.arange(len(labels)), fraction, seed=0)
        assert previous <= set(rows.tolist())
        previous = set(rows.tolist())
        counts = labels[rows].bincount(minlength=4)
        assert len(rows) == max(len(labels.unique()), round(fraction * len(labels)))
        assert (counts > 0).all()
        # three small classes are owed a first image, at the cost of the large one
        assert ((counts - fraction * labels.bincount()).abs() <= 3).all()
    assert len(previous) == len(labels)


def test_an_epoch_has_every_image_once_and_an_order_of_its_own() -> None:
    one = order()
    first = torch.cat(list(one))
    assert [len(batch) for batch in one] == [8] * 12 + [7]
    assert len(one) == 13
    assert first.sort().values.equal(torch.arange(103))
    one.set_epoch(1)
    assert not torch.cat(list(one)).equal(first)
    one.set_epoch(0)
    assert torch.cat(list(one)).equal(first)
    assert not torch.cat(list(order(seed=1))).equal(first)


def test_the_order_of_a_subset_is_that_of_the_whole() -> None:
    whole, half = order(), order()
    half.rows, half.positions = half.rows[::2], half.positions[::2]
    kept = [row for row in torch.cat(list(whole)).tolist() if row % 2 == 0]
    assert torch.cat(list(half)).tolist() == [row // 2 * 2 for row in kept]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_share_the_steps_of_one_device(world_size: int) -> None:
    ranks = [order(batch_size=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = list(order(batch_size=4 * world_size))
    assert len({len(rank) for rank in ranks}) == 1
    for step, parts in enumerate(zip(*ranks, strict=True)):
        assert len({len(part) for part in parts}) == 1
        together = torch.cat(parts)
        assert together.equal(alone[step][: len(together)])
        assert len(alone[step]) - len(together) < world_size


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("size", [16, 17, 23, 103])
def test_evaluation_sees_each_image_once_in_equally_many_batches(world_size: int, size: int) -> None:
    ranks = [order(size, train=False, shuffle=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(rank) for rank in ranks]
    assert {len(rank) for rank in ranks} == {len(rank) for rank in batches} == {len(batches[0])}
    assert torch.cat([torch.cat(rank) for rank in batches]).equal(torch.arange(size))
    assert all(0 < len(batch) <= 8 for rank in batches for batch in rank)


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images cannot be shared among 4 ranks"):
        order(3, world_size=4)
