"""CCT, CCN, CCP, CvN, CvP, LeViN and LeViP: their constructors' arguments, and what these are here."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from vix.attention import AttentionFactory, NystromAttention, Performer, SoftmaxAttention

DEFAULTS_CCT: dict[str, Any] = {
    "img_size": 224,
    "embedding_dim": 768,
    "n_input_channels": 3,
    "n_conv_layers": 1,
    "kernel_size": 7,
    "stride": (2, 1, 1),
    "padding": 3,
    "pooling_kernel_size": 3,
    "pooling_stride": 2,
    "pooling_padding": 1,
    "num_layers": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "num_classes": 1000,
    "stochastic_depth_rate": 0.1,
    "positional_embedding": "sine",
    # Misspelt in the scripts, and swallowed.
    "mlp_radio": None,
    "stochastic_depth": None,
}
SCRIPT_CCT: dict[str, Any] = {
    "img_size": 64,
    "embedding_dim": 128,
    "n_conv_layers": 3,
    "kernel_size": 3,
    "padding": 1,
    "pooling_stride": 1,
    "num_layers": 4,
    "num_heads": 4,
    "num_classes": 200,
    "positional_embedding": "learnable",
}
_STAGE = {"emb_kernel": 3, "proj_kernel": 3, "kv_proj_stride": 2, "mlp_mult": 4}
_STAGES = (
    {"emb_dim": 64, "emb_kernel": 7, "emb_stride": 4, "heads": 1, "depth": 1},
    {"emb_dim": 192, "emb_stride": 2, "heads": 3, "depth": 2},
    {"emb_dim": 384, "emb_stride": 2, "heads": 6, "depth": 10},
)
DEFAULTS_CVT: dict[str, Any] = {
    f"s{number}_{name}": value
    for number, stage in enumerate(_STAGES, start=1)
    for name, value in {**_STAGE, **stage}.items()
} | {"dropout": 0.0}
_TRAINED_STAGE = {"emb_dim": 128, "emb_kernel": 3, "kv_proj_stride": 1, "heads": 4, "depth": 1, "mlp_mult": 2}
SCRIPT_CVT: dict[str, Any] = {
    **{f"s{number}_{name}": value for number in (1, 2, 3) for name, value in _TRAINED_STAGE.items()},
    "num_classes": 200,
    "s1_emb_stride": 2,
    "s2_emb_stride": 1,
    "s3_emb_stride": 1,
    "s3_depth": 2,
}
DEFAULTS_LEVIT: dict[str, Any] = {
    "stages": 3,
    "dim_key": 32,
    "dim_value": 32,
    "dropout": 0.0,
    "num_distill_classes": None,
}
SCRIPT_LEVIT: dict[str, Any] = {
    "image_size": 32,
    "num_classes": 200,
    "stages": 1,
    "dim": 128,
    "depth": 4,
    "heads": 4,
    "mlp_mult": 2,
}
_UNUSED = {"mlp_radio", "stochastic_depth"}
_UNUSED_STAGE = {f"s{number}_{name}" for number in (1, 2, 3) for name in ("proj_kernel", "kv_proj_stride")}
IGNORED = {
    "CCT": _UNUSED,
    "CCN": _UNUSED,
    "CCP": {*_UNUSED, "num_heads"},
    "CvN": {*_UNUSED_STAGE, "s1_heads", "s2_heads", "s3_heads"},
    "CvP": _UNUSED_STAGE,
    "LeViN": {"dim_key", "dim_value", "heads"},
    "LeViP": {"dim_key", "dim_value"},
}
"""Arguments that were accepted and changed nothing."""
# Hard-coded in all of them, whatever width a token has.
DIM_HEAD = 32
HEADS = 4
LANDMARKS = 64
FEATURES = 110


def _kernel(system: str) -> AttentionFactory:
    if system.endswith("N"):
        return partial(NystromAttention, num_landmarks=LANDMARKS, as_published=True)
    return partial(Performer, features=FEATURES, as_published=True)


def only(system: str, arguments: Mapping[str, Any], name: str, value: Any) -> None:
    """Refuses any other value of an argument; a pair of the same number is that number.

    Raises:
        ValueError: If it has another.
    """
    if arguments[name] not in (value, [value, value], (value, value)):
        raise ValueError(f"the published {system} can be loaded with {name}={value} only, got {arguments[name]!r}")


def cct(system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of CCT, CCN or CCP.

    Raises:
        ValueError: If there is no counterpart here.
    """
    for name, value in {"pooling_kernel_size": 3, "pooling_padding": 1, "padding": given["kernel_size"] // 2}.items():
        only(system, given, name, value)
    dim, heads = given["embedding_dim"], given["num_heads"]
    args = {
        "image_size": given["img_size"],
        "num_classes": given["num_classes"],
        "dim": dim,
        "depth": given["num_layers"],
        "mlp_ratio": int(given["mlp_ratio"]),
        "kernel": given["kernel_size"],
        "stride": tuple(given["stride"])[: given["n_conv_layers"]],
        "pool_stride": given["pooling_stride"],
        # A table of sines is in the weights as well, so that it can be loaded like a learned one.
        "position": "none" if given["positional_embedding"] == "none" else "learned",
        "channels": given["n_input_channels"],
        "drop_path": given["stochastic_depth_rate"],
    }
    if system == "CCT":
        # Its dropout of attention weights cannot be reached by any argument.
        return args | {"attention": partial(SoftmaxAttention, dropout=0.1), "heads": heads, "dim_head": dim // heads}
    if system == "CCN":
        return args | {"heads": heads, "dim_head": DIM_HEAD, "num_landmarks": LANDMARKS, "as_published": True}
    args |= {"heads": HEADS, "dim_head": DIM_HEAD}
    return args | {"features": FEATURES, "as_published": True, "qkv_bias": True}


def cvt(system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of CvN or CvP: 32x32 maps behind the first stage, as its code has them."""
    stages = [{name[3:]: value for name, value in given.items() if name.startswith(f"s{n}_")} for n in (1, 2, 3)]
    return {
        "attention": _kernel(system),
        "convolutions": [[(stage["emb_dim"], stage["emb_kernel"], stage["emb_stride"])] for stage in stages],
        "depth": [stage["depth"] for stage in stages],
        "heads": [HEADS if system == "CvN" else stage["heads"] for stage in stages],
        "mlp_ratio": [stage["mlp_mult"] for stage in stages],
        "norms": True,
        "dim_head": DIM_HEAD,
        "qkv_bias": system == "CvP",
        "image_size": 32 * stages[0]["emb_stride"],
        "num_classes": given["num_classes"],
        "dropout": given["dropout"],
    }


def levit(system: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of LeViN or LeViP: 32x32 maps behind a stem of stride 2, as its code has them.

    Raises:
        ValueError: If there is more than one stage, or a second head.
    """
    only(system, given, "stages", 1)
    only(system, given, "num_distill_classes", None)
    one = {name: given[name][0] if isinstance(given[name], list | tuple) else given[name] for name in _PER_STAGE}
    return {
        "attention": _kernel(system),
        "convolutions": [[(32, 3, 2), (64, 3, 1), (one["dim"], 3, 1)]],
        "depth": [one["depth"]],
        "heads": [HEADS if system == "LeViN" else one["heads"]],
        "mlp_ratio": [given["mlp_mult"]],
        "norms": False,
        "dim_head": DIM_HEAD,
        "qkv_bias": system == "LeViP",
        "image_size": 64,
        "num_classes": given["num_classes"],
        "dropout": given["dropout"],
    }


_PER_STAGE = ("dim", "depth", "heads")
