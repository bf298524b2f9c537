"""What the shapes of CCT, CCN, CCP, CvN, CvP, LeViN and LeViP tell of their constructors' arguments."""

import math
from typing import TYPE_CHECKING

from vix.published.others import DIM_HEAD

if TYPE_CHECKING:
    from vix.published.shapes import Reading, Shapes

FIRST_ATTENTION = {
    "tokenizer.conv_layers.0.0.weight": ("CC", "classifier.blocks.0.self_attn."),
    "layers.0.1.g": ("Cv", "layers.0.2.layers.0.0.fn."),
    "conv_embedding.0.weight": ("LeVi", "backbone.0.layers.0.0."),
}
"""By a weight that only one family has: how its names begin, and those of its first attention."""


def recognise_other(shapes: "Shapes") -> str | None:
    """Returns the name of the model of these seven whose weights these are, if they are of one."""
    for mark, (family, attention) in FIRST_ATTENTION.items():
        if mark in shapes:
            if f"{attention}res_conv.weight" in shapes:
                return f"{family}N"
            if f"{attention}fast_attention.projection_matrix" in shapes:
                return f"{family}P"
            if f"{attention}qkv.weight" in shapes:
                return f"{family}T"
    return None


def read_cct(reading: "Reading") -> None:
    """Reads CCT, CCN or CCP; a grid that is no square has to be given as `img_size`."""
    rounds = reading.depth("tokenizer.conv_layers.")
    _, channels, kernel, _ = reading.shape("tokenizer.conv_layers.0.0.weight", 4)
    dim = reading.shape(f"tokenizer.conv_layers.{rounds - 1}.0.weight", 4)[0]
    reading.tell("n_conv_layers", rounds)
    reading.tell("n_input_channels", channels)
    reading.tell("kernel_size", kernel)
    reading.tell("padding", kernel // 2)
    reading.tell("embedding_dim", dim)
    reading.tell("num_layers", reading.depth("classifier.blocks."))
    reading.tell("num_classes", reading.shape("classifier.fc.weight", 2)[0])
    reading.tell("mlp_ratio", reading.shape("classifier.blocks.0.linear1.weight", 2)[0] / dim)
    strides = reading.assume("stride", (2, 1, 1))
    shrinks = math.prod(strides[:rounds]) * reading.assume("pooling_stride", 1) ** rounds
    if "classifier.positional_emb" not in reading.shapes:
        reading.tell("positional_embedding", "none")
    else:
        if "positional_embedding" not in reading.given:
            reading.tell("positional_embedding", "learnable")
        count = reading.shape("classifier.positional_emb", 3)[1]
        if "img_size" not in reading.given and math.isqrt(count) ** 2 != count:
            raise ValueError(f"{count} tokens make no square: give img_size as a (height, width) pair")
        reading.assume("img_size", math.isqrt(count) * shrinks)
    if reading.model.system == "CCN":
        reading.tell("num_heads", reading.shape("classifier.blocks.0.self_attn.res_conv.weight", 4)[0])


def read_cvt(reading: "Reading") -> None:
    """Reads CvN or CvP."""
    reading.tell("num_classes", reading.shape("layers.5.weight", 2)[0])
    for stage in range(3):
        ours, theirs = f"s{stage + 1}", f"layers.{stage}"
        dim, _, kernel, _ = reading.shape(f"{theirs}.0.weight", 4)
        reading.tell(f"{ours}_emb_dim", dim)
        reading.tell(f"{ours}_emb_kernel", kernel)
        reading.tell(f"{ours}_depth", reading.depth(f"{theirs}.2.layers."))
        reading.tell(f"{ours}_mlp_mult", reading.shape(f"{theirs}.2.layers.0.1.fn.net.0.weight", 4)[0] // dim)
        if reading.model.system == "CvP":
            inner = reading.shape(f"{theirs}.2.layers.0.0.fn.to_q.weight", 2)[0]
            reading.tell(f"{ours}_heads", inner // DIM_HEAD)


def read_levit(reading: "Reading") -> None:
    """Reads LeViN or LeViP."""
    dim = reading.shape("conv_embedding.2.weight", 4)[0]
    reading.tell("num_classes", reading.shape("mlp_head.weight", 2)[0])
    reading.tell("stages", reading.depth("backbone."))
    reading.tell("dim", dim)
    reading.tell("depth", reading.depth("backbone.0.layers."))
    reading.tell("mlp_mult", reading.shape("backbone.0.layers.0.1.net.0.weight", 4)[0] // dim)
    if reading.model.system == "LeViP":
        reading.tell("heads", reading.shape("backbone.0.layers.0.0.to_q.weight", 2)[0] // DIM_HEAD)
