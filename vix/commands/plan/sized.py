"""Tensors that have sizes but no values, and the bytes that are alive while operations run on them."""

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CONVOLUTIONS = {torch.ops.aten.convolution.default: 0, torch.ops.aten.convolution_backward.default: 1}
"""Which of their arguments is the input; the weight comes next."""


class Face(NamedTuple):
    """All that an operation can ask of a tensor without values."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Face":
        """Looks at a tensor."""
        return cls(tensor.size(), tensor.stride(), tensor.dtype)


class Made(NamedTuple):
    """A tensor among the results of an operation.

    Args:
        face: Its sizes and type.
        size: Bytes of its storage.
        given: Which of the operation's tensors, counted from 0, it shares that storage with; None for none.
        itself: Whether it is that tensor, changed in place, and no view of it.
    """

    face: Face
    size: int
    given: int | None = None
    itself: bool = False


class Scalar(NamedTuple):
    """A number with its type: 1, 1.0 and True are equal, yet results differ in type."""

    kind: type
    value: Any


@functools.cache
def results(func: Any, arguments: Any, options: Any) -> Any:
    """Asks torch, once, what an operation makes of such tensors; to ask each time takes ten times as long.

    Args:
        func: The operation.
        arguments: What it is called with, written by `LiveBytes`: tuples, with a `Face` in the place of each tensor.
        options: The same by name, in pairs.

    Returns:
        What it returns, with a `Made` in the place of each tensor.

    Raises:
        NotImplementedError: If it changes a tensor's size in place.
    """
    given: list[tuple[Face, Tensor]] = []

    def argument(part: Any) -> Any:
        if isinstance(part, Face):
            given.append((part, torch.empty_strided(part.size, part.stride, dtype=part.dtype, device="meta")))
            return given[-1][1]
        if isinstance(part, Scalar):
            return part.value
        return [argument(each) for each in part] if isinstance(part, tuple) else part

    def made(part: Any) -> Any:
        if isinstance(part, (tuple, list)):
            return type(part)(made(each) for each in part)
        if not isinstance(part, Tensor):
            return part
        storage = part.untyped_storage()
        for place, (face, tensor) in enumerate(given):
            if tensor.untyped_storage()._cdata == storage._cdata:
                if tensor is part and Face.of(part) != face:
                    raise NotImplementedError(f"{func} changes a tensor's size in place, which plan does not follow")
                return Made(Face.of(part), storage.nbytes(), place, tensor is part)
        return Made(Face.of(part), storage.nbytes())

    positional = argument(arguments)
    out = func(*positional, **{name: "meta" if name == "device" else argument(part) for name, part in options})
    return made(laid_out(out, *positional[CONVOLUTIONS[func] :]) if func in CONVOLUTIONS else out)


def laid_out(out: Any, x: Tensor, weight: Tensor, _: Any, *options: Any) -> Any:
    """Lays out what a convolution made as on the CPU, since without a device torch takes contiguous for granted.

    Args:
        out: What it made.
        x: Its input.
        weight: Its weight.
        options: Stride, padding, dilation, whether it is transposed, output padding, groups, and more.
    """
    x, weight = Sized.like(x), Sized.like(weight)
    kernel = torch._C._select_conv_backend(x, weight, None, *options[:6])
    layout = torch._C._conv_determine_backend_memory_format(x, weight, kernel)
    if isinstance(out, Tensor):
        return out.contiguous(memory_format=layout)
    # the gradients of input and weight, but not the bias's
    return *(None if part is None else part.contiguous(memory_format=layout) for part in out[:2]), out[2]


class LiveBytes(TorchDispatchMode):
    """Runs operations on sizes alone and counts the bytes that they make, each until its last tensor is gone.

    Args:
        fixed: Bytes that are there before and stay.

    Attributes:
        now: The bytes that are alive.
        peak: The most that there were.
    """

    def __init__(self, fixed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = fixed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Makes what an operation would make."""
        given: list[Sized] = []
        arguments = self._written(args, given)
        options = tuple([(name, self._written(part, given)) for name, part in (kwargs or {}).items()])
        return self._made(results(func, arguments, options), given)

    # Methods, since a function within another that calls itself is a cycle, and would keep tensors alive.

    def _written(self, part: Any, given: list["Sized"]) -> Any:
        """Writes arguments so that `results` can remember them, and collects their tensors."""
        if isinstance(part, Tensor):
            given.append(part if isinstance(part, Sized) else Sized.like(part, self))
            return given[-1].face
        if isinstance(part, (tuple, list)):
            return tuple([self._written(each, given) for each in part])
        return Scalar(type(part), part) if isinstance(part, (bool, float)) else part

    def _made(self, part: Any, given: list["Sized"]) -> Any:
        """Makes the tensors of `results`."""
        if isinstance(part, Made):
            if part.given is None:
                return Sized(part.face, Storage(part.size, self))
            source = given[part.given]
            return source if part.itself else Sized(part.face, source.shared)
        return type(part)(self._made(each, given) for each in part) if isinstance(part, (tuple, list)) else part


class Storage:
    """Stands for the bytes that tensors share.

    Args:
        size: Bytes.
        live: Counts them as long as there is such a tensor; None for bytes that are counted otherwise.
    """

    def __init__(self, size: int, live: LiveBytes | None = None) -> None:
        self.size = size
        self.live = live
        if live is not None:
            live.now += size
            live.peak = max(live.peak, live.now)

    def __del__(self) -> None:
        """Takes them away with the last tensor."""
        if self.live is not None:
            self.live.now -= self.size


class Sized(Tensor):
    """A tensor without values that passes for one on the CPU, so that autocast and attention choose as they do there.

    Operations run on it under `LiveBytes` only.

    Args:
        face: Its sizes and type.
        storage: Its bytes.
    """

    face: Face
    shared: Storage

    @staticmethod
    def __new__(cls, face: Face, storage: Storage) -> "Sized":
        """Makes one."""
        made: Sized = Tensor._make_wrapper_subclass(
            cls, face.size, strides=face.stride, dtype=face.dtype, device=torch.device("cpu")
        )
        made.face = face
        made.shared = storage
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def like(cls, tensor: Tensor, live: LiveBytes | None = None) -> "Sized":
        """Makes one as large as a tensor, of the same type, and trained where that is."""
        made = cls(Face.of(tensor), Storage(tensor.nbytes, live))
        made.requires_grad = tensor.requires_grad
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Refuses, since under `LiveBytes` that is asked."""
        raise RuntimeError(f"{func} of a tensor without values, outside of LiveBytes")
