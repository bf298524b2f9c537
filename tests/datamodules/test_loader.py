import multiprocessing
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodules.errors import DataError
from datamodules.loader import Loader
from datamodules.samples import ArraySamples, Batch
from datamodules.sampling import BatchOrder

SAMPLES = ArraySamples(
    torch.arange(50, dtype=torch.uint8)[:, None, None, None].expand(50, 1, 2, 2), torch.arange(50) % 5
)


def loader(num_workers: int = 0, **changes: int) -> Loader:
    rows = torch.arange(50)
    arguments = {"batch_size": 8, "train": True, "shuffle": True, "seed": 0} | changes
    return Loader(SAMPLES, BatchOrder(rows, rows, **arguments), num_workers=num_workers)  # type: ignore[arg-type]


def indices(batches: list[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


def test_a_batch_holds_images_labels_and_positions_that_belong_together() -> None:
    for images, labels, positions in loader():
        assert images.dtype == torch.uint8
        assert images[:, 0, 0, 0].long().equal(positions)
        assert labels.equal(positions % 5)


def test_workers_give_the_same_batches_in_the_same_order() -> None:
    here, there = loader(), loader(num_workers=2)
    for epoch in (0, 1):
        here.batch_sampler.set_epoch(epoch)
        there.batch_sampler.set_epoch(epoch)
        for one, other in zip(here, there, strict=True):
            assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def test_fetching_touches_no_global_generator() -> None:
    before = torch.get_rng_state(), random.getstate()
    list(loader())
    list(loader(num_workers=1))
    assert torch.get_rng_state().equal(before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 6, 7])
def test_a_loaded_state_goes_on_after_the_batches_taken(taken: int, num_workers: int) -> None:
    whole = loader()
    whole.batch_sampler.set_epoch(4)
    expected = indices(list(whole))
    stopped = loader(num_workers=num_workers)
    stopped.batch_sampler.set_epoch(4)
    iterator = iter(stopped)
    for _ in range(taken):
        next(iterator)
    state = stopped.state_dict()
    resumed = loader(num_workers=num_workers)
    resumed.load_state_dict(state)
    assert len(resumed) == 7
    # Lightning makes the iterator first and says the epoch afterwards
    iterator = iter(resumed)
    if taken == 7:
        whole.batch_sampler.set_epoch(5)
        assert indices(list(iterator)) == indices(list(whole))
        return
    resumed.batch_sampler.set_epoch(4)
    first = next(iterator)
    assert resumed.state_dict()["batches"] == taken + 1
    assert indices([first, *iterator]) == expected[taken:]
    resumed.batch_sampler.set_epoch(5)
    whole.batch_sampler.set_epoch(5)
    assert indices(list(resumed)) == indices(list(whole))


def test_the_state_is_plain() -> None:
    state = loader().state_dict()
    assert {type(value) for value in state.values()} == {int}


def test_another_setting_in_mid_epoch_is_refused_and_in_a_new_epoch_is_not() -> None:
    stopped = loader()
    next(iter(stopped))
    for epoch in (0, 1):
        resumed = loader(batch_size=4)
        resumed.load_state_dict(stopped.state_dict())
        resumed.batch_sampler.set_epoch(epoch)
        if epoch:
            assert len(list(resumed)) == 13
        else:
            with pytest.raises(DataError, match="in the middle of epoch 0: batch_size was 8, is 4"):
                list(resumed)


class _Broken(ArraySamples):
    def fetch(self, rows: Tensor) -> Tensor:
        raise DataError("cannot read the image bee.png: it is broken")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_comes_out_of_a_worker_in_one_line(num_workers: int) -> None:
    rows = torch.arange(50)
    order = BatchOrder(rows, rows, batch_size=8, train=True, shuffle=True, seed=0)
    with pytest.raises(DataError) as caught:
        list(Loader(_Broken(SAMPLES.images, SAMPLES.labels), order, num_workers=num_workers))
    assert str(caught.value) == "cannot read the image bee.png: it is broken"
    assert multiprocessing.active_children() == []


def test_no_worker_outlives_an_iteration_that_is_given_up() -> None:
    iterator = iter(loader(num_workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    del iterator
    assert multiprocessing.active_children() == []


class _Seeds(ArraySamples):
    def fetch(self, rows: Tensor) -> Tensor:
        drawn = torch.initial_seed(), random.getrandbits(62), int(np.random.randint(2**62))
        return torch.tensor(drawn).view(torch.uint8).reshape(1, 1, 3, 8).expand(len(rows), 1, 3, 8)


def test_every_worker_of_every_rank_has_its_own_seed_in_every_epoch_and_run() -> None:
    rows = torch.arange(50)

    def seeds(seed: int, rank: int, epoch: int) -> list[tuple[int, ...]]:
        order = BatchOrder(rows, rows, batch_size=2, train=True, shuffle=True, seed=seed, rank=rank, world_size=2)
        order.set_epoch(epoch)
        batches = list(Loader(_Seeds(SAMPLES.images, SAMPLES.labels), order, num_workers=2))
        # of each worker the first batch: later ones have drawn more
        return [tuple(batch.images[0].flatten().view(torch.int64).tolist()) for batch in batches[:2]]

    places = [(seed, rank, epoch) for seed in (0, 1) for rank in (0, 1) for epoch in (0, 1)]
    found = [seeds(*place) for place in places]
    for values in zip(*(worker for workers in found for worker in workers), strict=True):
        assert len(set(values)) == 2 * len(places)
    assert seeds(*places[3]) == found[3]
