"""Batches in order, in this process or from workers, with a state from which a run goes on in mid-epoch."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.draws import key, signed
from datamodules.errors import DataError
from datamodules.samples import Batch, Samples
from datamodules.sampling import BatchOrder


class _Batches(Dataset["Batch | DataError"]):
    """What a worker runs: a whole batch for each list of rows."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, rows: Tensor) -> Batch | DataError:
        try:
            return self.samples.batch(rows)
        except DataError as error:
            # torch would wrap an error that is raised in a worker in its whole traceback
            return error


class Loader:
    """Iterates over the batches of one rank.

    It is no `DataLoader`, because fetching by the batch from memory needs none; `num_workers` above 0 puts one
    underneath. Lightning sees `batch_sampler` (for `set_epoch`) and `state_dict`/`load_state_dict`.

    Nothing is fetched before the first `next`: Lightning makes the iterator first and sets the epoch afterwards.

    Args:
        samples: The images.
        order: Which of them, in which batches.
        num_workers: Processes that fetch ahead; 0 fetches in this one.
    """

    def __init__(self, samples: Samples, order: BatchOrder, *, num_workers: int = 0) -> None:
        self.samples = samples
        self.batch_sampler = order
        self.batch_size = order.batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available()
        self._taken = 0
        self._changed = ""

    @property
    def epoch(self) -> int:
        """Epoch of the batches that come out now."""
        return self.batch_sampler.epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever was skipped on resuming."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self.batch_sampler.skip and self._changed:
            raise DataError(self._changed)
        self._taken = self.batch_sampler.skip
        batches = iter(self._fetch())
        self.batch_sampler.skip = 0
        try:
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                self._taken += 1
                yield batch
        finally:
            # ends workers here and now, though the traceback of an error may keep this frame
            del batches

    def _fetch(self) -> Iterable[Batch | DataError]:
        if self.num_workers == 0:
            batches = map(self.samples.batch, self.batch_sampler)
            return (Batch(*(t.pin_memory() for t in batch)) for batch in batches) if self.pin_memory else batches
        # workers last for one epoch: persistent ones that a run's end leaves to the garbage collector hang in it
        return DataLoader(
            _Batches(self.samples),
            sampler=self.batch_sampler,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            pin_memory=self.pin_memory,
            generator=self._generator(),
        )

    def _generator(self) -> torch.Generator:
        """Seeds the workers, each differently in every rank and epoch, should images draw from global generators.

        It is one of its own, for dropout draws from the global one.
        """
        order = self.batch_sampler
        return torch.Generator().manual_seed(signed(key(order.seed, order.epoch, f"workers of rank {order.rank}")))

    def state_dict(self) -> dict[str, Any]:
        """Where the iteration stands: the epoch, the batches taken, and what must be the same to go on from there."""
        return {"epoch": self.epoch, "batches": self._taken, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken.

        Under another seed, batch size, number of ranks or set of images the rest of a begun epoch is another one: then
        iterating over it raises a `DataError`, unless Lightning begins a new epoch first.
        """
        order = self.batch_sampler
        at_end = state["batches"] >= state["steps"]
        order.epoch = state["epoch"] + at_end
        order.skip = 0 if at_end else state["batches"]
        self._taken = order.skip
        changes = [
            f"{name} was {state[name]}, is {now}" for name, now in self._identity().items() if state[name] != now
        ]
        self._changed = (
            f"cannot go on in the middle of epoch {state['epoch']}: {', '.join(changes)}\n"
            "Resume with the same settings, or from a checkpoint of the end of an epoch."
            if changes
            else ""
        )

    def _identity(self) -> dict[str, int]:
        order = self.batch_sampler
        return {
            "seed": order.seed,
            "batch_size": order.batch_size,
            "world_size": order.world_size,
            "images": len(order.rows),
            "steps": len(self),
        }


def _as_it_is(batch: Any) -> Any:
    return batch
