"""What each system can do, tried out: one function a column, on nets of a few thousand parameters."""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing
from torch import Tensor, distributed, nn
from torch.nn.functional import cross_entropy

import vix
from tests.nets import images, tiny
from vix.backbones import Backbone

YES = "yes"
SIDE, LARGER = 16, 24
CLASSES = 5


class UnsupportedError(Exception):
    """A system cannot do this; the message says why."""


class NotApplicableError(Exception):
    """The question makes no sense for a system; the message says why."""


@dataclass(frozen=True)
class Column:
    """A question to all systems.

    Args:
        name: Its name in the table.
        asks: What is tried, in one sentence.
        check: Tries it on some rows; gives for each `yes`, or `no: why`, or `n/a: why`.
        dear: Whether it takes seconds a system.
    """

    name: str
    asks: str
    check: Callable[[Sequence[str]], dict[str, str]]
    dear: bool


ROWS: dict[str, tuple[type[Backbone], dict[str, Any]]] = {}
for _name, _system in vix.SYSTEMS.items():
    ROWS[_name] = _system, {}
    if issubclass(_system, vix.ViT):
        ROWS[f"{_name} RoPE"] = _system, {"position": "rope"}


def make(row: str) -> Backbone:
    """A net of the least sizes; one block a stage, since what holds for one holds for two."""
    system, options = ROWS[row]
    return tiny(system, image_size=SIDE, num_classes=CLASSES, depth=1, **options)


def batch(net: Backbone, count: int = 4) -> tuple[Tensor, Tensor]:
    return images(net, count), torch.arange(count) % CLASSES


def gradients(net: nn.Module, pictures: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Gradients by name; each parameter has one."""
    net.zero_grad()
    cross_entropy(net(pictures).float() if pictures.dtype == torch.float32 else net(pictures), labels).backward()
    found = {}
    for name, parameter in net.named_parameters():
        if parameter.grad is None or not parameter.grad.isfinite().all():
            raise UnsupportedError(f"the gradient of {name} is missing or not finite")
        found[name] = parameter.grad.clone()
    return found


def near(one: Tensor, other: Tensor, tolerance: float, what: str, floor: float = 1e-12) -> None:
    """Raises `UnsupportedError` where the largest difference is above a part of the largest value, or of the floor."""
    difference = float((one - other).abs().max() / other.abs().max().clamp(min=floor))
    if not difference <= tolerance:
        raise UnsupportedError(f"{what} differ by {difference:.1g} of the largest")


def each(check: Callable[[Backbone], None]) -> Callable[[Sequence[str]], dict[str, str]]:
    """A column that asks the systems one by one."""

    def ask(rows: Sequence[str]) -> dict[str, str]:
        return {row: answer(lambda row=row: check(make(row))) for row in rows}  # type: ignore[misc]

    return ask


def answer(check: Callable[[], None]) -> str:
    try:
        check()
    except UnsupportedError as error:
        return f"no: {error}"
    except NotApplicableError as error:
        return f"n/a: {error}"
    return YES


def fp32(net: Backbone) -> None:
    pictures, labels = batch(net)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        gradients(net, pictures, labels)
        optimiser.step()
        with torch.no_grad():
            losses.append(cross_entropy(net(pictures), labels).item())
    if not losses[-1] < losses[0]:
        raise UnsupportedError(f"the loss of four images went from {losses[0]:.3f} to {losses[-1]:.3f} in five steps")


def half(dtype: torch.dtype, tolerance: float) -> Callable[[Backbone], None]:
    def check(net: Backbone) -> None:
        pictures, labels = batch(net)
        with torch.no_grad():
            expected = net.eval()(pictures)
            with torch.autocast("cpu", dtype):
                found = net(pictures)
        near(found.float(), expected, tolerance, "logits")
        with torch.autocast("cpu", dtype):
            gradients(net.train(), pictures, labels)

    return check


def compiled(net: Backbone) -> None:
    for training in (False, True):
        # In double precision: BatchNorm over a few images multiplies a rounding by thousands.
        plain = copy.deepcopy(net).train(training).double()
        fused = copy.deepcopy(plain)
        torch.compiler.reset()
        fused.compile(backend="aot_eager", fullgraph=True)
        pictures, labels = batch(plain)
        if training:
            for (name, one), other in zip(
                gradients(fused, pictures, labels).items(), gradients(plain, pictures, labels).values(), strict=True
            ):
                # A bias before BatchNorm has a gradient of roundings alone.
                near(one, other, 1e-4, f"gradients of {name}", floor=0.1)
        else:
            with torch.no_grad():
                near(fused(pictures), plain(pictures), 1e-6, "logits")


def exported(form: str) -> Callable[[Backbone], None]:
    def check(net: Backbone) -> None:
        from vix.commands.export.formats import FORMATS, difference, facts_of

        pictures = images(net.eval(), 17)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"net{FORMATS[form].suffix}"
            FORMATS[form].write(net, pictures, path, facts_of(net=net.spec))
            predict, _ = FORMATS[form].read(path, ())
            found = difference(predict, net, pictures)
        if not found <= 1e-4:
            raise UnsupportedError(f"logits differ by {found:.1g} at batches of 1, 3 and 17")

    return check


def resized(net: Backbone) -> None:
    net.eval()
    pictures = images(net)
    try:
        same, larger = net.resized(SIDE), net.resized(LARGER)
    except ValueError as error:
        raise UnsupportedError(str(error)) from error
    with torch.no_grad():
        near(same(pictures), net(pictures), 1e-6, "logits at the same size")
        if not larger(images(larger)).isfinite().all():
            raise UnsupportedError("logits are not finite")


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def deterministic(net: Backbone) -> None:
    pictures, labels = batch(net)
    states = []
    with deterministic_algorithms():
        for _ in range(2):
            once = copy.deepcopy(net)
            torch.manual_seed(0)
            optimiser = torch.optim.AdamW(once.parameters(), lr=1e-2)
            for _ in range(3):
                try:
                    gradients(once, pictures, labels)
                except RuntimeError as error:
                    if "deterministic" not in str(error):
                        raise
                    raise UnsupportedError(str(error).splitlines()[0]) from error
                optimiser.step()
            states.append(once.state_dict())
    if different := [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]:
        raise UnsupportedError(f"two trainings from one seed differ in {different[0]}")


def recomputed(net: Backbone) -> None:
    net = net.double()
    pictures, labels = batch(net)
    kept = gradients(copy.deepcopy(net), pictures, labels)
    net.set_grad_checkpointing()
    for name, gradient in gradients(net, pictures, labels).items():
        near(gradient, kept[name], 1e-6, f"gradients of {name}")


def ema(net: Backbone) -> None:
    from tests.support.training import average_of_a_training

    kept, expected = average_of_a_training(net)
    for name, value in expected.items():
        near(kept[name], value, 1e-6, f"averages of {name}")


def resumed(net: Backbone) -> None:
    from tests.support.training import in_one_go_and_in_two

    whole, halves = in_one_go_and_in_two(net)
    if different := [name for name in whole if not torch.equal(whole[name], halves[name])]:
        raise UnsupportedError(f"a resumed training differs from a whole one in {different[0]}")


def two_processes(rows: Sequence[str]) -> dict[str, str]:
    """All rows in one pair of processes, whose start costs more than the rows."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_one_of_two, (list(rows), folder), nprocs=2)  # type: ignore[no-untyped-call]
        found: dict[str, str] = torch.load(Path(folder) / "answers", weights_only=True)
    return found


def _one_of_two(rank: int, rows: list[str], folder: str) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    try:
        answers = {row: answer(lambda row=row: _shared(make(row), rank)) for row in rows}  # type: ignore[misc]
    finally:
        distributed.destroy_process_group()
    if rank == 0:
        torch.save(answers, Path(folder) / "answers")


def _shared(net: Backbone, rank: int) -> None:
    """Each process has half of the images; the gradients are the means of the halves' own."""
    net = net.double()
    pictures, labels = batch(net, 8)
    parts = [(pictures[start::2], labels[start::2]) for start in (0, 1)]
    alone = [gradients(copy.deepcopy(net), *part) for part in parts]
    module = nn.parallel.DistributedDataParallel(net)
    # A second step would raise where a parameter had no part in the first.
    for _ in range(2):
        together = gradients(module, *parts[rank])
    for name, gradient in together.items():
        name = name.removeprefix("module.")
        near(gradient, (alone[0][name] + alone[1][name]) / 2, 1e-6, f"gradients of {name}")


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        Column("fp32", "every parameter gets a gradient and the loss of four images falls", each(fp32), False),
        Column(
            "bf16", "autocast: logits within 4 % of fp32's, finite gradients", each(half(torch.bfloat16, 0.04)), False
        ),
        Column(
            "fp16", "autocast: logits within 1 % of fp32's, finite gradients", each(half(torch.float16, 0.01)), False
        ),
        Column("compile", "`torch.compile(fullgraph=True)` in train and eval, backend aot_eager", each(compiled), True),
        Column(
            "torch.export",
            "dynamic batch, within 1e-4 of torch at 1, 3 and 17 images",
            each(exported("torch_export")),
            True,
        ),
        Column("ONNX", "the same in onnxruntime", each(exported("onnx")), True),
        Column(
            "other resolution",
            f"`resized`: from {SIDE} to {LARGER} pixels, and unchanged at {SIDE}",
            each(resized),
            False,
        ),
        Column(
            "deterministic",
            "`use_deterministic_algorithms`: two trainings agree to the bit",
            each(deterministic),
            False,
        ),
        Column("EMA", "what is kept is the average of the weights after each step", each(ema), True),
        Column("resume", "one epoch and one more agree with two to the bit, dropout on", each(resumed), True),
        Column("checkpointing", "recomputed blocks give the same gradients", each(recomputed), False),
        Column("DDP", "two processes' gradients are the means of their halves'", two_processes, True),
    )
}
