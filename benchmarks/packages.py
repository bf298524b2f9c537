"""The other packages: imported from a folder of their own, mended where torch left them behind, put into our bodies."""

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from vix.attention import NystromAttention
from vix.backbones.cct import Tokenizer
from vix.layers import FeedForward
from vix.mixers import Mixer, SelfAttention
from vix.published.simplified import SimplifiedStage, StandardNorm
from vix.tokens import Tokens

VERSIONS = {
    "vision-xformer": "0.2.0",
    "nystrom-attention": "0.0.14",
    "performer-pytorch": "1.1.4",
    "linformer": "0.2.3",
    "vit-pytorch": "1.26.11",
    "timm": None,
}
"""What is compared; None for any version, which the results then name."""


class Packages:
    """Imports the packages from the folder that `pip install --target` filled.

    Args:
        folder: That folder. It comes last on the path, so that torch and the rest stay ours.

    Raises:
        SystemExit: If a package is missing or has another version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        found = {
            distribution.name.lower().replace("_", "-"): distribution.version
            for distribution in importlib.metadata.distributions(path=[str(self.folder)])
        }
        for name, version in VERSIONS.items():
            if found.get(name) is None or version not in (None, found[name]):
                wanted = f"{name}=={version}" if version else name
                raise SystemExit(
                    f"{wanted} is not in {folder} (found: {found.get(name, 'nothing')}); see benchmarks/README.md"
                )
        self.versions = {name: found[name] for name in VERSIONS}
        sys.path.append(str(self.folder))

    def __getattr__(self, name: str) -> ModuleType:
        """Imports a package by name."""
        return importlib.import_module(name)

    def vision_xformer(self, system: str, arguments: dict[str, Any]) -> nn.Module:
        """Makes a model of the package vision-xformer, whose name our own module at the root has too.

        Its Performer calls `torch.qr`, which torch 2.15 no longer has: here, and only while it is built, that name
        stands for `torch.linalg.qr`.
        """
        package = self.folder / "vision_xformer"
        spec = importlib.util.spec_from_file_location(
            "vision_xformer", package / "__init__.py", submodule_search_locations=[str(package)]
        )
        assert spec is not None
        assert spec.loader is not None
        ours = sys.modules.pop("vision_xformer", None)
        module = sys.modules["vision_xformer"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            with replaced(torch, "qr", lambda matrix, some=True: torch.linalg.qr(matrix)):
                model: nn.Module = getattr(module, system)(**arguments)
        finally:
            if ours is not None:
                sys.modules["vision_xformer"] = ours
        return model


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Gives an attribute another value for a while, also one that does not exist."""
    missing = object()
    before = getattr(owner, name, missing)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


class Foreign(Mixer):
    """Stands where our self-attention stood, with a package's whole module (b n c) -> (b n c).

    Args:
        module: The package's self-attention, projections and all.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Maps (b n c) to (b n c)."""
        return self.module(x)


def with_modules(net: nn.Module, make: Callable[[SelfAttention], nn.Module]) -> nn.Module:
    """Copies a net and puts a package's module in the place of every self-attention."""
    other = copy.deepcopy(net)
    for parent in list(other.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SelfAttention):
                setattr(parent, name, Foreign(make(child)))
    return other


class PlainFeedForward(nn.Module):
    """Our feed-forward network as anybody would write it: autograd keeps what it likes.

    Args:
        network: Whose weights it takes.
    """

    def __init__(self, network: FeedForward) -> None:
        super().__init__()
        self.layers = nn.Sequential(network.expand, network.activation, network.dropout, network.contract)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (b n c) to (b n c)."""
        out: Tensor = self.layers(x)
        return out


class PlainNorm(nn.Module):
    """The authors' norm as they would write it.

    Args:
        norm: Whose weights it takes.
    """

    def __init__(self, norm: StandardNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Maps (... c) to (... c)."""
        deviation = x.var(dim=-1, unbiased=False, keepdim=True).sqrt()
        return (x - x.mean(dim=-1, keepdim=True)) / (deviation + self.eps) * self.weight + self.bias


class PlainStage(nn.Module):
    """A stage of the published CvN or LeViN whose tokens are a view of the convolutions' map, as its authors have it.

    Args:
        stage: Whose layers it takes.
    """

    def __init__(self, stage: SimplifiedStage) -> None:
        super().__init__()
        self.convolutions, self.norm, self.blocks = stage.convolutions, stage.norm, stage.blocks

    def forward(self, x: Tensor, checkpointing: bool) -> Tensor:
        """Maps (b c y x) to (b c y x); nothing is computed again."""
        x = rearrange(self.convolutions(x), "b c y x -> b y x c")
        tokens = Tokens((x.shape[1], x.shape[2]))
        x = rearrange(self.norm(x), "b y x c -> b (y x) c")
        for block in self.blocks:
            x = block(x, tokens)
        return rearrange(x, "b (y x) c -> b c y x", y=tokens.grid[0])


def plain_tokenizer(tokenizer: Tokenizer) -> nn.Module:
    """Makes CCT's tokenizer of its convolutions as a sequence of layers."""
    rounds = ((convolution, nn.ReLU(), tokenizer.pool) for convolution in tokenizer.convolutions)
    return nn.Sequential(*(layer for layers in rounds for layer in layers))


def with_plain_layers(net: nn.Module) -> nn.Module:
    """Puts plain layers in the place of ours that keep less for backward, or lie better in memory."""
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SimplifiedStage):
                setattr(parent, name, PlainStage(child))
            elif isinstance(child, Tokenizer):
                setattr(parent, name, plain_tokenizer(child))
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, FeedForward):
                setattr(parent, name, PlainFeedForward(child))
            elif isinstance(child, StandardNorm):
                setattr(parent, name, PlainNorm(child))
    return net


def copied(target: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Loads weights into a package's module, all of them and no others."""
    target.load_state_dict(
        {name: value.detach().reshape(target.state_dict()[name].shape) for name, value in weights.items()}
    )
    return target


def nystrom_module(mixer: SelfAttention, package: ModuleType) -> nn.Module:
    """Makes nystrom-attention's module of our mixer's weights."""
    kernel = mixer.attention
    assert isinstance(kernel, NystromAttention)
    assert kernel.residual is not None
    module = package.NystromAttention(
        mixer.project.in_features,
        dim_head=mixer.dim_head,
        heads=kernel.spec.heads,
        num_landmarks=kernel.landmarks(kernel.spec.queries.count, kernel.spec.keys.count),
    )
    return copied(
        module,
        {
            "to_qkv.weight": mixer.project.weight,
            "to_out.0.weight": mixer.output.weight,
            "to_out.0.bias": mixer.output.bias,
            "res_conv.weight": kernel.residual.weight,
        },
    )


def linformer_module(mixer: SelfAttention, package: ModuleType) -> nn.Module:
    """Makes linformer's module of our mixer's weights: one head of keys, which are the values too."""
    rank_of = dict(mixer.attention.named_parameters())["project_keys"]
    module = package.LinformerSelfAttention(
        mixer.project.in_features,
        seq_len=rank_of.shape[0],
        k=rank_of.shape[1],
        heads=mixer.split[0],
        dim_head=mixer.dim_head,
        one_kv_head=True,
        share_kv=True,
    )
    queries, keys = mixer.project.weight.split([width * mixer.dim_head for width in mixer.split])
    return copied(
        module,
        {
            "to_q.weight": queries,
            "to_k.weight": keys,
            "proj_k": rank_of,
            "to_out.weight": mixer.output.weight,
            "to_out.bias": mixer.output.bias,
        },
    )


def performer_module(mixer: SelfAttention, package: ModuleType) -> nn.Module:
    """Makes performer-pytorch's module of our mixer's weights and random directions."""
    projection = dict(mixer.attention.named_buffers())["projection"]
    module = package.SelfAttention(
        mixer.project.in_features,
        heads=mixer.split[0],
        dim_head=mixer.dim_head,
        nb_features=projection.shape[0],
        qkv_bias=True,
        attn_out_bias=True,
    )
    weights = {"fast_attention.projection_matrix": projection}
    for kind in ("weight", "bias"):
        parts = getattr(mixer.project, kind).chunk(3)
        weights |= {f"to_{name}.{kind}": part for name, part in zip("qkv", parts, strict=True)}
        weights[f"to_out.{kind}"] = getattr(mixer.output, kind)
    return copied(module, weights)
