"""Which images go where and in which order: stratified splits, nested subsets, batches of a rank."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from datamodules.draws import Draws


def stratified_order(labels: Tensor, positions: Tensor, *, seed: int, stream: str, offset: float) -> Tensor:
    """All rows, ordered so that every prefix holds the classes in proportion, to within an image or so of each.

    Inside a class the order is random; the classes are interleaved by `(rank in class + offset) / size of class`.

    Args:
        labels: Class of each row, int64 (n,).
        positions: Position of each row in its official split, which the random order depends on, int64 (n,).
        seed: Seed of the order.
        stream: What the order is for; two streams are independent.
        offset: 0 gives every class its first image before any class its second; 0.5 gives small classes theirs late.

    Returns:
        Rows, int64 (n,).
    """
    shuffled = Draws(seed, 0, positions).bits(stream, 1)[:, 0].argsort(stable=True)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    sizes = labels.bincount()
    starts = sizes.cumsum(0) - sizes
    rank = torch.empty_like(labels)
    rank[by_class] = torch.arange(len(labels)) - starts[labels[by_class]]
    # float64: two fractions of classes up to 2^26 images are equal only where they are equal
    fraction = (rank[shuffled].double() + offset) / sizes[labels[shuffled]].double()
    return shuffled[fraction.argsort(stable=True)]


def stratified_cut(
    labels: Tensor, positions: Tensor, fraction: float, *, seed: int, stream: str
) -> tuple[Tensor, Tensor]:
    """Cuts `fraction` of the rows out, in proportion of the classes.

    Returns:
        (rows that stay, rows cut out), both ascending.
    """
    order = stratified_order(labels, positions, seed=seed, stream=stream, offset=0.5)
    size = round(fraction * len(labels))
    return order[size:].sort().values, order[:size].sort().values


def fixed_test_cut(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts the test split out of images that have no official one: always the same fifth, whatever the arguments.

    Returns:
        (rows that stay, rows of the test split), both ascending.
    """
    return stratified_cut(labels, torch.arange(len(labels)), 0.2, seed=0, stream="test")


def stratified_subset(labels: Tensor, positions: Tensor, fraction: float, *, seed: int) -> Tensor:
    """`fraction` of the rows, ascending; a smaller fraction's rows are among a larger one's.

    Every class keeps at least one image.
    """
    order = stratified_order(labels, positions, seed=seed, stream="subset", offset=0.0)
    size = max(len(labels.unique()), round(fraction * len(labels)))
    return order[:size].sort().values


class BatchOrder(Sampler[Tensor]):
    """The rows of each batch of one rank: an epoch's order is a function of (seed, epoch, image) alone.

    In training the images of a step, over all ranks, are those of one rank with the global batch size. Every rank
    takes equally many, so that gradients average rightly; of the last step up to `world_size - 1` images are left out.
    In evaluation each image comes once, over all ranks, and the ranks have equally many batches.

    Args:
        rows: Rows to go through, int64 (n,).
        positions: Position of each of these rows in its official split, int64 (n,).
        batch_size: Images of a batch of this rank.
        train: Whether the rows are shared among ranks as in training, else as in evaluation.
        shuffle: Whether each epoch has an order of its own, else that of `rows`.
        seed: Seed of the run.
        rank: Number of this rank.
        world_size: Number of ranks.

    Raises:
        ValueError: If there are fewer rows than ranks.
    """

    def __init__(
        self,
        rows: Tensor,
        positions: Tensor,
        *,
        batch_size: int,
        train: bool,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if len(rows) < world_size:
            raise ValueError(f"{len(rows)} images cannot be shared among {world_size} ranks")
        self.rows = rows
        self.positions = positions
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.skip = 0

    @property
    def sampler(self) -> "BatchOrder":
        """Itself: Lightning calls `set_epoch` on a loader's `batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration; an epoch entered anew is begun at its first batch."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.skip = 0

    def batches(self) -> list[Tensor]:
        """All batches of this rank in this epoch, as rows."""
        if not self.train:
            if self.world_size == 1:
                return list(self.rows.split(self.batch_size))
            # shares differ by one image at most; as many batches of each, lest a rank wait for another in vain
            return list(self.rows.tensor_split(self.world_size)[self.rank].tensor_split(len(self)))
        rows = self.rows
        if self.shuffle:
            rows = rows[Draws(self.seed, self.epoch, self.positions).bits("order", 1)[:, 0].argsort(stable=True)]
        steps = []
        for step in rows.split(self.batch_size * self.world_size):
            each = len(step) // self.world_size
            if each:
                steps.append(step[self.rank * each : (self.rank + 1) * each])
        return steps

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches()[self.skip :])

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, whatever was skipped."""
        if not self.train:
            return math.ceil(math.ceil(len(self.rows) / self.world_size) / self.batch_size)
        whole, rest = divmod(len(self.rows), self.batch_size * self.world_size)
        return whole + (rest >= self.world_size)
