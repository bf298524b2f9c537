"""From the arguments of the ViX family's original constructors to those of our nets."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vix.published.others import only
from vix.tokens import pair

if TYPE_CHECKING:
    from vix.published.originals import Original


def shell(original: "Original", given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of a model of the ViX shell.

    Raises:
        ValueError: If the original does not run with them.
    """
    names = ("image_size", "patch_size", "num_classes", "dim", "depth", "mlp_dim", "pool", "channels", "dropout")
    args = {name: given[name] for name in (*names, "emb_dropout")}
    # The published mean is over the class token too.
    args["class_token"] = True
    if original.hybrid:
        only(original.system, given, "patch_size", 1)
        args["channels"] = 3
    elif original.package:
        args["embedding"] = "linear_normed"
    if original.rope:
        only(original.system, given, "rotary_position_emb", True)
        args["position"] = "rope"
    if original.base == "FNet":
        return args
    args["heads"] = original.fixed_heads or given["heads"]
    args["dim_head"] = given["dim_head"]
    if original.base == "ViT":
        return args
    # Only ViT drops values of the attention's output.
    args["proj_dropout"] = 0.0
    if original.base == "ViL":
        args |= {"rank": given["k"], "one_kv_head": given["one_kv_head"], "attn_dropout": given["dropout"]}
        args |= {"share_kv": given["share_kv"], "share_projection": given["share_kv"]}
    elif original.base == "ViP":
        args |= {"features": given["features"], "qkv_bias": True, "as_published": True}
    else:
        args |= {"num_landmarks": given["num_landmarks"], "as_published": True}
    return args


def _times(width: int, factor: float) -> int:
    # Rounded first, since a factor read from shapes is a quotient.
    return int(round(width * factor, 6))


def mixer(original: "Original", given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of MLPMixer or HybridMLPMixer.

    Raises:
        ValueError: If the original does not run with them.
    """
    (height, width), (p, q) = pair(given["image_size"], "image_size"), pair(given["patch_size"], "patch_size")
    args = {name: given[name] for name in ("num_classes", "dim", "depth", "channels", "dropout")}
    if original.hybrid:
        # Its image_size is the grid of tokens behind a stem of stride 2.
        only(original.system, given, "patch_size", 1)
        height, width, p, q = 2 * height, 2 * width, 2, 2
        args["channels"] = 3
    expansion = given["expansion_factor"]
    args |= {"image_size": (height, width), "patch_size": (p, q)}
    count = (height // p) * (width // q)
    args |= {"token_dim": _times(count, expansion), "mlp_dim": _times(given["dim"], expansion)}
    return args


def fnet2d(original: "Original", given: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the arguments of FNet2D, the script's or the package's."""
    args = {name: given[name] for name in ("num_classes", "depth", "dropout")}
    if original.package:
        return args | {"dim": given["dim"], "mlp_dim": given["mlp_dim"]}
    dim = given["final_dim"]
    return args | {"image_size": given["image_size"], "dim": dim, "mlp_dim": _times(dim, given["mlp_mult"])}
