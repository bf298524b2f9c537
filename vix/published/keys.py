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
    "softmax": {"project": ("to_qkv",), "output": ("to_out.0",)},
    "cct": {"project": ("qkv",), "output": ("proj",)},
    "linformer": {
        "project": ("to_q", "to_k", "to_v"),
        "output": ("to_out",),
        "attention.project_keys": ("proj_k",),
        "attention.project_values": ("proj_v",),
    },
    "performer": {
        "project": ("to_q", "to_k", "to_v"),
        "output": ("to_out",),
        "attention.projection": ("fast_attention.projection_matrix",),
    },
    "nystrom": {
        "project": ("to_qkv",),
        "output": ("to_out.0",),
        "attention.residual": ("res_conv",),
    },
}
_BY_LETTER = {"T": "softmax", "L": "linformer", "P": "performer", "N": "nystrom"}


def _mixer_names(attention: str, prefix: str) -> Names:
    names = _ATTENTIONS[attention].items()
    return {f"mixer.{ours}": tuple(f"{prefix}{name}" for name in theirs) for ours, theirs in names}


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
    }
    if original.base != "FNet":
        block |= _mixer_names(_BY_LETTER[original.base[-1]], "0.fn.")
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


def _cct(original: Original, arguments: Mapping[str, Any]) -> Names:
    names: Names = {
        f"tokenizer.convolutions.{n}": (f"tokenizer.conv_layers.{n}.0",) for n in range(arguments["n_conv_layers"])
    }
    names |= {"position.table": ("classifier.positional_emb",), "pool.weigh": ("classifier.attention_pool",)}
    names |= {"norm": ("classifier.norm",), "head": ("classifier.fc",)}
    block: Names = {
        "mixer_norm": ("pre_norm",),
        "mlp_norm": ("norm1",),
        "mlp.expand": ("linear1",),
        "mlp.contract": ("linear2",),
        **_mixer_names("cct" if original.system == "CCT" else _BY_LETTER[original.base[-1]], "self_attn."),
    }
    return names | _blocks(arguments["num_layers"], "classifier.blocks.", 0, block)


def _cvt(original: Original, arguments: Mapping[str, Any]) -> Names:
    # The class of our norm has weight and bias where theirs has g and b.
    block: Names = {
        **{f"{ours}.weight": (f"{theirs}.norm.g",) for ours, theirs in (("mixer_norm", "0"), ("mlp_norm", "1"))},
        **{f"{ours}.bias": (f"{theirs}.norm.b",) for ours, theirs in (("mixer_norm", "0"), ("mlp_norm", "1"))},
        "mlp.expand": ("1.fn.net.0",),
        "mlp.contract": ("1.fn.net.3",),
        **_mixer_names(_BY_LETTER[original.base[-1]], "0.fn."),
    }
    names: Names = {"head": ("layers.5",)}
    for stage in range(3):
        ours, theirs = f"stages.{stage}", f"layers.{stage}"
        names[f"{ours}.convolutions.0"] = (f"{theirs}.0",)
        names[f"{ours}.norm.weight"], names[f"{ours}.norm.bias"] = (f"{theirs}.1.g",), (f"{theirs}.1.b",)
        blocks = _blocks(arguments[f"s{stage + 1}_depth"], f"{theirs}.2.layers.", 0, block)
        names |= {f"{ours}.{key}": value for key, value in blocks.items()}
    return names


def _levit(original: Original, arguments: Mapping[str, Any]) -> Names:
    names: Names = {f"stages.0.convolutions.{index}": (f"conv_embedding.{index}",) for index in range(3)}
    block: Names = {
        "mlp.expand": ("1.net.0",),
        "mlp.contract": ("1.net.3",),
        **_mixer_names(_BY_LETTER[original.base[-1]], "0."),
    }
    depth = arguments["depth"]
    blocks = _blocks(depth[0] if isinstance(depth, list | tuple) else depth, "backbone.0.layers.", 0, block)
    return names | {"head": ("mlp_head",)} | {f"stages.0.{key}": value for key, value in blocks.items()}


def sources(original: Original, arguments: Mapping[str, Any], ours: Mapping[str, Tensor]) -> Names:
    """Returns for each tensor of our net the original's that make it, to be laid one below the other.

    Args:
        original: The published model.
        arguments: All arguments of its constructor.
        ours: The state dict of our net.
    """
    tables = {"shell": _shell, "mixer": _mixer, "fnet2d": _fnet2d, "cct": _cct, "cvt": _cvt, "levit": _levit}
    names = tables[original.family](original, arguments)

    def theirs(key: str) -> tuple[str, ...]:
        module, _, leaf = key.rpartition(".")
        return names[key] if key in names else tuple(f"{name}.{leaf}" for name in names[module])

    return {key: theirs(key) for key in ours}


def join(parts: list[Tensor], like: Tensor) -> Tensor | None:
    """Lays tensors one below the other; None if that does not give the shape of `like`.

    A convolution of one tap becomes a linear map where `like` is one, and a vector for maps (1 c 1 1) a plain one.
    """
    flat = []
    for part in parts:
        shape = part.shape[1:] if part.ndim == 4 and like.ndim == 1 and part.shape[0] == 1 else part.shape
        if len(shape) < like.ndim or any(side != 1 for side in shape[like.ndim :]):
            return None
        flat.append(part.reshape(shape[: like.ndim]))
    if len(flat) > 1 and any(part.shape[1:] != like.shape[1:] for part in flat):
        return None
    value = flat[0] if len(flat) == 1 else torch.cat(flat)
    return value if value.shape == like.shape else None


def _identities(original: Original, arguments: Mapping[str, Any], like: Tensor) -> dict[str, Tensor]:
    """Writes out the outputs that the original ViT leaves away: with one head as wide as a token there is nothing."""
    if original.base != "ViT" or arguments["heads"] != 1 or arguments["dim_head"] != arguments["dim"]:
        return {}
    dim = arguments["dim"]
    outputs = [f"transformer.layers.{index}.0.fn.to_out.0" for index in range(arguments["depth"])]
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
