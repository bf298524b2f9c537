"""From the original code's names of weights to ours.

The tables below give for each of our modules (or single tensors) the original's; several are laid one below the other,
as queries, keys and values are in our one projection.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vix.published.originals import Original

Names = dict[str, tuple[str, ...]]

UNUSED = ("layer_pos_emb.emb",)
"""Tables of rotations, computed again here."""
UNUSED_WITH_ROPE = (*UNUSED, "pos_embedding")
"""Four of the eight RoPE models also saved a table of positions that nothing ever read."""

_ATTENTIONS: dict[str, Names] = {
    "ViT": {
        "mixer.project": ("0.fn.to_qkv",),
        "mixer.output": ("0.fn.to_out.0",),
    },
    "ViL": {
        "mixer.project": ("0.fn.to_q", "0.fn.to_k", "0.fn.to_v"),
        "mixer.output": ("0.fn.to_out",),
        "mixer.attention.project_keys": ("0.fn.proj_k",),
        "mixer.attention.project_values": ("0.fn.proj_v",),
    },
    "ViP": {
        "mixer.project": ("0.fn.to_q", "0.fn.to_k", "0.fn.to_v"),
        "mixer.output": ("0.fn.to_out",),
        "mixer.attention.projection": ("0.fn.fast_attention.projection_matrix",),
    },
    "ViN": {
        "mixer.project": ("0.fn.to_qkv",),
        "mixer.output": ("0.fn.to_out.0",),
        "mixer.attention.residual": ("0.fn.res_conv",),
    },
    "FNet": {},
}


def _blocks(depth: int, prefix: str, first: int, block: Names) -> Names:
    return {
        f"blocks.{index}.{ours}": tuple(f"{prefix}{first + index}.{name}" for name in theirs)
        for index in range(depth)
        for ours, theirs in block.items()
    }


def _shell(original: Original, arguments: Mapping[str, Any]) -> Names:
    names: Names = {
        "class_token": ("cls_token",),
        "position.table": ("pos_embedding",),
        "norm": ("mlp_head.0",),
        "head": ("mlp_head.1",),
    }
    embedding = "to_patch_embedding"
    if original.hybrid:
        names |= {f"embedding.stem.{index}": (f"{embedding}.{index}",) for index in range(3)}
    elif original.package:
        parts = ("patch_norm", "project", "token_norm")
        names |= {f"embedding.{part}": (f"{embedding}.{index}",) for index, part in enumerate(parts, start=1)}
    else:
        names["embedding.project"] = (f"{embedding}.1",)
    block: Names = {
        "mixer_norm": ("0.norm",),
        "mlp_norm": ("1.norm",),
        "mlp.expand": ("1.fn.net.0",),
        "mlp.contract": ("1.fn.net.3",),
        **_ATTENTIONS[original.base],
    }
    if arguments.get("share_kv"):
        block["mixer.project"] = block["mixer.project"][:2]
    blocks = "token_mixer" if original.system == "pip_FNet" else "transformer"
    return names | _blocks(arguments["depth"], f"{blocks}.layers.", 0, block)


def _mixer(original: Original, arguments: Mapping[str, Any]) -> Names:
    # A plain sequence: what precedes the blocks, the blocks, the norm, the mean, the head.
    first, depth = (4 if original.hybrid else 2), arguments["depth"]
    names: Names = {"norm": (f"{first + depth}",), "head": (f"{first + depth + 2}",)}
    if original.hybrid:
        names |= {f"embedding.stem.{index}": (f"{index}",) for index in range(3)}
    else:
        names["embedding.project"] = ("1",)
    block: Names = {
        "mixer_norm": ("0.norm",),
        "mixer.network.expand": ("0.fn.0",),
        "mixer.network.contract": ("0.fn.3",),
        "mlp_norm": ("1.norm",),
        "mlp.expand": ("1.fn.0",),
        "mlp.contract": ("1.fn.3",),
    }
    return names | _blocks(depth, "", first, block)


def _fnet2d(original: Original, arguments: Mapping[str, Any]) -> Names:
    block: Names = {"norm": ("ff.0",), "mlp.expand": ("ff.1.net.0",), "mlp.contract": ("ff.1.net.3",)}
    names: Names = {"stem.0": ("conv.0",), "stem.1": ("conv.1",), "head": ("pool.2",)}
    return names | _blocks(arguments["depth"], "layers.", 0, block)


def sources(original: Original, arguments: Mapping[str, Any], ours: Mapping[str, Tensor]) -> Names:
    """Returns for each tensor of our net the original's that make it, to be laid one below the other.

    Args:
        original: The published model.
        arguments: All arguments of its constructor.
        ours: The state dict of our net.
    """
    tables = {"shell": _shell, "mixer": _mixer, "fnet2d": _fnet2d}
    names = tables[original.family](original, arguments)

    def theirs(key: str) -> tuple[str, ...]:
        module, _, leaf = key.rpartition(".")
        return names[key] if key in names else tuple(f"{name}.{leaf}" for name in names[module])

    return {key: theirs(key) for key in ours}


def join(parts: list[Tensor], like: Tensor) -> Tensor | None:
    """Lays tensors one below the other; None if that does not give the shape of `like`.

    A convolution of one tap becomes a linear map where `like` is one.
    """
    if any(part.ndim < like.ndim or any(side != 1 for side in part.shape[like.ndim :]) for part in parts):
        return None
    flat = [part.reshape(part.shape[: like.ndim]) for part in parts]
    if len(flat) > 1 and any(part.shape[1:] != like.shape[1:] for part in flat):
        return None
    value = flat[0] if len(flat) == 1 else torch.cat(flat)
    return value if value.shape == like.shape else None


def _identities(original: Original, arguments: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Writes out the outputs that the original ViT leaves away: with one head as wide as a token there is nothing."""
    dim, depth = arguments.get("dim"), arguments["depth"]
    if original.base != "ViT" or arguments["heads"] != 1 or arguments["dim_head"] != dim:
        return {}
    outputs = [f"transformer.layers.{index}.0.fn.to_out.0" for index in range(depth)]
    weights = {f"{name}.weight": torch.eye(dim).to(like) for name in outputs}
    return weights | {f"{name}.bias": torch.zeros(dim).to(like) for name in outputs}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def translate(
    original: Original, arguments: Mapping[str, Any], state: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gives the weights of an original the names and shapes of ours.

    Args:
        original: The published model.
        arguments: All arguments of its constructor.
        state: Its state dict.
        ours: The state dict of our net, for its names and shapes.

    Raises:
        ValueError: If a weight is missing, left over, has another shape, or is an integer.
    """
    unused = UNUSED_WITH_ROPE if original.rope else ()
    rest = {key: value for key, value in state.items() if key not in unused}
    if rest:
        rest |= _identities(original, arguments, next(iter(rest.values())))
    names = sources(original, arguments, ours)
    needed = [name for theirs in names.values() for name in theirs]
    problems = []
    if missing := [name for name in needed if name not in rest]:
        problems.append(f"misses {_listed(missing)}")
    if left := sorted(rest.keys() - set(needed)):
        problems.append(f"has no place for {_listed(left)}")
    if problems:
        raise ValueError(f"{original.system} with these arguments {' and '.join(problems)}")
    translated = {}
    for key, theirs in names.items():
        value = join([rest[name] for name in theirs], ours[key])
        if value is None:
            found = ", ".join(f"{name} {tuple(rest[name].shape)}" for name in theirs)
            raise ValueError(f"{original.system} with these arguments needs {tuple(ours[key].shape)} of {found}")
        if value.is_floating_point() != ours[key].is_floating_point():
            raise ValueError(f"{original.system}: {', '.join(theirs)} cannot be {value.dtype}")
        translated[key] = value
    return translated
