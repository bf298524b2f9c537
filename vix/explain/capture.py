"""What each layer of a net was given for one image, taken by forward hooks, without the nets knowing.

Shapes: b batch (one image), h heads, n query tokens, m key tokens, c width, t hidden tokens, y x the grid.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, reduce
from torch import Tensor, nn
from torch.nn import functional

from vix.attention import Attention, NystromAttention, SoftmaxAttention
from vix.attention.softmax import attention_weights
from vix.backbones.cct import SequencePooling
from vix.backbones.cvt import CvTAttention, TokenEmbedding
from vix.backbones.fnet2d import FourierBlock
from vix.backbones.levit import LeViTAttention
from vix.backbones.parts import to_tokens
from vix.explain.mixing import Linear, Mixing, Window
from vix.layers import widen
from vix.mixers import FourierMixing, Mixer, MLPMixing
from vix.tokens import Tokens


@dataclass
class Captured:
    """What happened to one image.

    Args:
        logits: What the net said (classes,).
        steps: The layers that mix tokens, and the windows of embeddings between stages, in the order of their calls.
        readout: How much the classifier looks at each token that comes out of the last layer (n,); sums to one.
    """

    logits: Tensor
    steps: list[Mixing | Window] = field(default_factory=list)
    readout: Tensor = field(default_factory=lambda: torch.ones(1))


@torch.no_grad()
def capture(net: nn.Module, image: Tensor) -> Captured:
    """Runs a net in evaluation mode on one image and takes what its layers got.

    Args:
        net: Any net whose tokens are mixed by kernels of `vix.attention` or mixers of `vix.mixers`.
        image: A normalised image (channels y x).

    Raises:
        ValueError: If the net has nothing that mixes tokens, or a mixer that is not known here.
    """
    steps: list[Mixing | Window] = []
    pooled: list[Tensor] = []
    handles = []
    for name, module in net.named_modules():
        parent = net.get_submodule(name.rpartition(".")[0]) if name else None
        take = _taker(module, parent, name)
        if take is not None:

            def hook(module: nn.Module, args: Any, kwargs: Any, take: Any = take) -> None:
                bound = inspect.signature(module.forward).bind(*args, **kwargs)
                steps.append(take(**bound.arguments))

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        elif isinstance(module, SequencePooling):

            def weigh(module: nn.Module, args: Any) -> None:
                assert isinstance(module, SequencePooling)
                pooled.append(module.weigh(args[0]).softmax(dim=1)[0, :, 0])

            handles.append(module.register_forward_pre_hook(weigh))
    modes = {module: module.training for module in net.modules()}
    try:
        logits = net.eval()(image[None])[0]
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    # The first embedding makes tokens of pixels, not of tokens.
    if steps and isinstance(steps[0], Window):
        del steps[0]
    mixings = [step for step in steps if isinstance(step, Mixing)]
    if not mixings:
        raise ValueError(f"{type(net).__name__} has no attention and no mixer of vix, so there is nothing to explain")
    return Captured(logits, steps, pooled[0] if pooled else _readout(net, mixings[-1]))


def _readout(net: nn.Module, last: Mixing) -> Tensor:
    weights = torch.full((last.queries.count,), 1 / last.queries.count).to(last.values)
    if getattr(net, "pool", None) == "cls":
        weights = torch.zeros_like(weights)
        weights[0] = 1
    return weights


def _taker(module: nn.Module, parent: nn.Module | None, name: str) -> Callable[..., Mixing | Window] | None:
    """What makes a step of a module's arguments, None for a module that mixes no tokens by itself."""
    if isinstance(module, Attention):
        kernel = module

        def take_kernel(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Mixing:
            return of_kernel(kernel, q, k, v, bias, parent, name)

        return take_kernel
    if isinstance(module, FourierMixing):
        return lambda x, tokens: of_fourier(x, tokens, name)
    if isinstance(module, FourierBlock):
        return lambda x, recompute=False: of_fourier_map(x, name)
    if isinstance(module, MLPMixing):
        mixer = module
        return lambda x, tokens: of_mlp(mixer, x, tokens, name)
    if isinstance(module, TokenEmbedding):
        embedding = module
        return lambda x: of_embedding(embedding, x)
    if isinstance(module, Mixer) and not any(isinstance(part, Attention) for part in module.modules()):
        raise ValueError(f"{type(module).__name__} ({name}) is a mixer that vix.explain does not know")
    return None


def of_kernel(
    kernel: Attention, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, parent: nn.Module | None, name: str
) -> Mixing:
    """Takes a call of a kernel, and what its body adds to it: values at the places of queries, windows of keys.

    Raises:
        ValueError: If the kernel was called for other tokens than it was built for, whose places are not known.
    """
    queries, keys, heads = kernel.spec.queries, kernel.spec.keys, q.shape[1]
    if (queries.count, keys.count) != (q.shape[-2], k.shape[-2]):
        raise ValueError(
            f"the net was built for {queries}, and the image has {q.shape[-2]}: build it for the size of the image"
        )
    positions: Linear | None = None
    window = None
    if isinstance(parent, LeViTAttention) and parent.value_position is not None:
        positions = _positions_of_values(parent.value_position, heads, keys)
    residual = kernel.residual if isinstance(kernel, NystromAttention) else None
    if isinstance(parent, CvTAttention):
        convolution = next(part for part in parent.values.modules() if isinstance(part, nn.Conv2d))
        # Queries stand on all tokens of a stage, keys on those that the stride leaves.
        window = _window(convolution, queries, keys)

    def apply(values: Tensor) -> Tensor:
        out: Tensor = kernel(q, k, values) if bias is None else kernel(q, k, values, bias)
        return out if positions is None else out + positions(values)

    def added(values: Tensor) -> Tensor:
        parts = [part(values) for part in (positions, residual) if part is not None]
        return torch.stack(parts).sum(dim=0)

    def exact(indices: Tensor) -> Tensor:
        rows = None if bias is None else bias[:, indices]
        return attention_weights(q[:, :, indices], k.expand(-1, heads, -1, -1), rows)[0]

    return Mixing(
        name=name,
        kind=type(kernel).__name__,
        heads=tuple(str(head + 1) for head in range(heads)),
        queries=queries,
        keys=keys,
        values=v[0].expand(heads, -1, -1),
        apply=apply,
        added=None if positions is None and residual is None else added,
        exact=exact,
        is_exact=isinstance(kernel, SoftmaxAttention) and positions is None,
        has_residual=not (isinstance(parent, LeViTAttention) and parent.stride > 1),
        window=window,
    )


def _positions_of_values(convolution: nn.Conv2d, heads: int, keys: Tokens) -> Linear:
    """The depth-wise convolution of LeViX's values as one filter a head, the mean of those of its channels."""
    filters = reduce(convolution.weight, "(h e) 1 i j -> h 1 i j", "mean", h=heads)

    def convolve(values: Tensor) -> Tensor:
        e = values.shape[-1]
        maps = rearrange(values, "b h (y x) e -> (b e) h y x", y=keys.grid[0])
        out = functional.conv2d(maps, filters, stride=convolution.stride, padding=1, groups=heads)
        return rearrange(out, "(b e) h y x -> b h (y x) e", e=e)

    return convolve


def _window(convolution: nn.Conv2d, inputs: Tokens, outputs: Tokens) -> Window:
    weights = reduce(convolution.weight.detach().abs(), "o i y x -> y x", "mean")
    return Window(weights, int(convolution.stride[0]), int(convolution.padding[0]), inputs, outputs)


def of_embedding(embedding: TokenEmbedding, x: Tensor) -> Window:
    """Takes the convolution that makes the tokens of a CvT's stage of those of the stage before."""
    rows, columns = embedding.grid(x.shape[-2], x.shape[-1])
    return _window(embedding.project, Tokens((x.shape[-2], x.shape[-1])), Tokens((rows, columns)))


def of_fourier(x: Tensor, tokens: Tokens, name: str) -> Mixing:
    """Takes Fourier mixing as what it is: attention with two heads that never look at the image.

    With F = C - iS the real part of F_n X F_c is C_n (X C_c) + S_n (-X S_c): a head of cosines over the tokens and one
    of sines, whose values are the real and the imaginary part of the transform over the channels, and which are added.
    """

    def apply(values: Tensor) -> Tensor:
        cosine, sine = values.unbind(dim=1)
        return torch.stack([torch.fft.fft(cosine, dim=-2).real, -torch.fft.fft(sine, dim=-2).imag], dim=1)

    return _fourier(x, tokens, name, FourierMixing, apply)


def of_fourier_map(x: Tensor, name: str) -> Mixing:
    """Takes a block of FNet2D: the same with waves over rows and columns of the map (b c y x)."""
    tokens = Tokens((x.shape[-2], x.shape[-1]))

    def apply(values: Tensor) -> Tensor:
        maps = rearrange(values, "b h (y x) e -> h b y x e", y=tokens.grid[0])
        waves = torch.fft.fft2(maps, dim=(-3, -2))
        return rearrange([waves[0].real, -waves[1].imag], "h b y x e -> b h (y x) e")

    return _fourier(to_tokens(x), tokens, name, FourierBlock, apply)


def _fourier(x: Tensor, tokens: Tokens, name: str, kind: type, apply: Linear) -> Mixing:
    spectrum = torch.fft.fft(widen(x))[0]
    return Mixing(
        name=name,
        kind=kind.__name__,
        heads=("cosine", "sine"),
        queries=tokens,
        keys=tokens,
        values=torch.stack([spectrum.real, spectrum.imag]),
        apply=apply,
    )


def of_mlp(mixer: MLPMixing, x: Tensor, tokens: Tokens, name: str) -> Mixing:
    """Takes MLP mixing, which is not linear: GELU(z) = z Phi(z), and the gates Phi are fixed as this image set them.

    With fixed gates each channel has a matrix W_2 diag(Phi) W_1 of its own, and these times the tokens, plus the
    biases' part, is the output exactly. The one head here is the mean of these matrices over the channels.
    """
    network = mixer.network
    gates = 0.5 * (1 + torch.erf(network.expand(x.mT)[0] * 2**-0.5)).mean(dim=0)

    def apply(values: Tensor) -> Tensor:
        return network.contract.weight @ (gates[:, None] * (network.expand.weight @ values))

    return Mixing(
        name=name,
        kind=type(mixer).__name__,
        heads=("mean of channels",),
        queries=tokens,
        keys=tokens,
        values=x,
        apply=apply,
    )
