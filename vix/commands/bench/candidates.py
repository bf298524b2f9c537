"""What can be measured: a system or a bare kernel with options, and softmax attention in the same place."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vix.attention import KERNELS, Attention, AttentionSpec, SoftmaxAttention
from vix.backbones import Backbone, CvT
from vix.spec import parameters_of
from vix.systems import SYSTEMS
from vix.tokens import Tokens

Mode = Literal["train", "infer"]
HEADS, HEAD_DIM = 4, 32


@dataclass(frozen=True)
class Candidate:
    """Something to be measured.

    Args:
        kind: The class of a system or of a kernel.
        options: Its arguments as (name, value) pairs, sizes left out.
        softmax: For softmax attention, how it is computed; empty for everything else.
    """

    kind: type[nn.Module]
    options: tuple[tuple[str, Any], ...] = ()
    softmax: Literal["", "fused", "explicit"] = ""

    @property
    def is_kernel(self) -> bool:
        """Whether it is a bare kernel."""
        return issubclass(self.kind, Attention)

    @property
    def label(self) -> str:
        """Its name in tables, plots and sentences."""
        options = ",".join(f"{name}={value}" for name, value in self.options)
        name = self.kind.__name__ + (f"({options})" if options else "")
        return f"{name}, {self.softmax} softmax" if self.softmax else name

    @property
    def baselines(self) -> tuple["Candidate", "Candidate"]:
        """Softmax attention in the same place, fused and explicit."""
        kind: type[nn.Module] = SoftmaxAttention if self.is_kernel else SYSTEMS[softmax_system(self.kind.__name__)]
        options = tuple((name, value) for name, value in self.options if name in arguments_of(kind))
        return Candidate(kind, options, "fused"), Candidate(kind, options, "explicit")


def softmax_system(name: str) -> str:
    """Names the softmax system that has the body of another: ViT for ViP and FNet, CvT for CvN."""
    twin = f"{name[:-1]}T"
    if twin in SYSTEMS:
        return twin
    return "HybridViT" if name.startswith("Hybrid") else "ViT"


def arguments_of(kind: type[nn.Module]) -> list[str]:
    """Lists the options of a system or kernel."""
    if issubclass(kind, Attention):
        parameters = inspect.signature(kind.__init__).parameters.values()
        return [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    return parameters_of(kind)


def parse(text: str) -> Candidate:
    """Reads `ViN` or `ViN:num_landmarks=256,position=rope`.

    Raises:
        ValueError: If nothing has that name, or it has no such option.
    """
    name, _, rest = text.partition(":")
    known: dict[str, type[nn.Module]] = {system.lower(): kind for system, kind in SYSTEMS.items()}
    for kernel in KERNELS:
        known |= {kernel.__name__.lower(): kernel, kernel.__name__.lower().removesuffix("attention"): kernel}
    if name.lower() not in known:
        names = [*SYSTEMS, *(kernel.__name__ for kernel in KERNELS)]
        close = get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {known[close[0]].__name__}?" if close else f"there are {', '.join(names)}"
        raise ValueError(f"no system or kernel {name!r}: {hint}")
    kind, options = known[name.lower()], []
    for item in filter(None, rest.split(",")):
        option, equals, value = item.partition("=")
        if not equals or option not in arguments_of(kind):
            raise ValueError(f"{kind.__name__} takes no {item!r}: its options are {', '.join(arguments_of(kind))}")
        options.append((option, _value(value)))
    return Candidate(kind, tuple(options))


def _value(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def with_baselines(wanted: list[Candidate]) -> list[Candidate]:
    """Puts softmax attention, fused and explicit, before what is compared with it; nothing comes twice."""
    chosen: list[Candidate] = []
    for candidate in wanted:
        plain = Candidate(candidate.kind, candidate.options)
        is_softmax = plain.kind is candidate.baselines[0].kind
        chosen += [new for new in (*candidate.baselines, *([] if is_softmax else [plain])) if new not in chosen]
    return chosen


def grid_for(tokens: int) -> tuple[int, int]:
    """Returns the squarest grid (rows, columns) of so many tokens."""
    rows = max(row for row in range(1, math.isqrt(tokens) + 1) if tokens % row == 0)
    return rows, tokens // rows


@dataclass
class Work:
    """A candidate's step at one size, ready to be repeated.

    Args:
        candidate: Whose step it is.
        module: The net or kernel.
        step: Runs the step.
        forward: Runs its forward alone, with gradients to come in training.
        reset: Drops the gradients; called before the clock starts.
        sequence: Tokens that the first block or the kernel sees, class token included.
        inputs: What the step reads.
    """

    candidate: Candidate
    module: nn.Module
    step: Callable[[], object]
    forward: Callable[[], object]
    reset: Callable[[], None]
    sequence: int
    inputs: tuple[Tensor, ...]


def prepare(
    candidate: Candidate,
    tokens: int,
    *,
    mode: Mode,
    precision: str,
    device: torch.device,
    batch: int,
    sizes: Mapping[str, int],
) -> Work:
    """Builds a candidate for a number of tokens and makes its step.

    Args:
        candidate: What to build.
        tokens: Tokens of the grid; a class token comes on top.
        mode: Whether the step is a training step or a forward without gradients.
        precision: `fp32`, or `bf16` for autocast.
        device: Where it runs.
        batch: Images of a step.
        sizes: `dim`, `heads` and so on, given to the candidates that have them.

    Raises:
        ValueError: If the candidate cannot take these sizes.
    """
    torch.manual_seed(0)
    build = _kernel if candidate.is_kernel else _system
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    module, inputs, sequence = build(candidate, tokens, device, batch, sizes, dtype)
    module.train(mode == "train")
    labels = torch.arange(batch, device=device) % getattr(module, "num_classes", 1)

    def forward() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            out: Tensor = module(*inputs)
            return out if candidate.is_kernel else functional.cross_entropy(out, labels)

    def train() -> None:
        out = forward()
        out.backward(torch.ones_like(out))

    def infer() -> None:
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            module(*inputs)

    def reset() -> None:
        for tensor in (*module.parameters(), *inputs):
            tensor.grad = None

    for tensor in inputs:
        # A bare kernel's gradients go on to the projections; pixels need none.
        tensor.requires_grad_(candidate.is_kernel and mode == "train")
    return Work(candidate, module, train if mode == "train" else infer, forward, reset, sequence, inputs)


def _kernel(
    candidate: Candidate, tokens: int, device: torch.device, batch: int, sizes: Mapping[str, int], dtype: torch.dtype
) -> tuple[nn.Module, tuple[Tensor, ...], int]:
    place = Tokens(grid_for(tokens))
    heads, width = sizes.get("heads", HEADS), sizes.get("dim_head", HEAD_DIM)
    softmax = {"fused": candidate.softmax == "fused"} if candidate.softmax else {}
    kernel: nn.Module = candidate.kind(AttentionSpec(heads, width, place, place), **dict(candidate.options), **softmax)
    inputs = tuple(torch.randn(batch, heads, tokens, width, device=device, dtype=dtype) for _ in range(3))
    return kernel.to(device), inputs, tokens


def _system(
    candidate: Candidate, tokens: int, device: torch.device, batch: int, sizes: Mapping[str, int], dtype: torch.dtype
) -> tuple[nn.Module, tuple[Tensor, ...], int]:
    accepted = arguments_of(candidate.kind)
    arguments: dict[str, Any] = {name: value for name, value in sizes.items() if name in accepted}
    arguments |= dict(candidate.options)
    rows, columns = grid_for(tokens)
    # Tokens of one pixel, unless asked for others: the bodies' own choice leaves at most 1,024 tokens.
    name = next(name for name in ("patch_size", "stem_stride", "stride") if name in accepted)
    stages = 1
    if issubclass(candidate.kind, CvT):
        dims = arguments.get("dim", inspect.signature(CvT.__init__).parameters["dim"].default)
        stages = 1 if isinstance(dims, int) else len(dims)
    stride = arguments.setdefault(name, 1 if stages == 1 else (1, *[2] * (stages - 1)))
    first = stride if isinstance(stride, int) else stride[0]
    net = candidate.kind(image_size=(rows * first, columns * first), **arguments)
    assert isinstance(net, Backbone)
    for module in net.modules():
        if candidate.softmax and isinstance(module, SoftmaxAttention):
            module.fused = candidate.softmax == "fused"
    images = torch.randn(batch, net.channels, *net.image_size, device=device)
    return net.to(device), (images,), net.tokens.count
