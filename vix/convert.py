"""Weights of LeViT, CvT and CCT from the packages that publish them, under the names of our bodies.

    net = vix.LeViT.preset("128S")
    net.load_state_dict(vix.convert.from_timm_levit(timm.create_model("levit_128s", pretrained=True).state_dict()))

None of the packages is needed here: a function renames what a state dict holds. A net with another attention takes the
same weights by `load_state_dict(..., strict=False)`, for what the two have in common.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

State = Mapping[str, Tensor]
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
EPS = 1e-5


def _rename(state: State, rules: Iterable[tuple[str, str]], source: str) -> dict[str, Tensor]:
    """Applies to each key the first rule that matches all of it.

    Raises:
        ValueError: If a key matches no rule.
    """
    compiled = [(re.compile(pattern), name) for pattern, name in rules]
    renamed = {}
    for key, value in state.items():
        match = next(((found, name) for pattern, name in compiled if (found := pattern.fullmatch(key))), None)
        if match is None:
            raise ValueError(f"{key!r} is no weight of {source}")
        renamed[match[0].expand(match[1])] = value
    return renamed


def _split_joint(state: dict[str, Tensor], prefix: str) -> None:
    """Cuts the rows of a joint q, k, v map, which come head by head, into those of q and those of k and v."""
    heads = state[f"{prefix}bias.table"].shape[0]
    values = state[f"{prefix}output.linear.weight"].shape[1]
    width = (state[f"{prefix}qkv.linear.weight"].shape[0] - values) // heads // 2
    for leaf in ("linear.weight", *(f"norm.{name}" for name in NORM)):
        joint = state.pop(f"{prefix}qkv.{leaf}")
        queries = keys_values = joint
        if joint.ndim:
            queries, keys_values = joint.unflatten(0, (heads, -1)).tensor_split([width], dim=1)
            queries, keys_values = queries.flatten(0, 1), keys_values.flatten(0, 1)
        state[f"{prefix}queries.{leaf}"], state[f"{prefix}keys_values.{leaf}"] = queries, keys_values


def _average_heads(state: dict[str, Tensor]) -> None:
    """Folds the head that learned from a teacher into the other: their mean is one linear map behind one BatchNorm."""
    one, two = ({name: state[f"{head}.bn.{name}"] for name in NORM} for head in ("head", "head_dist"))
    scales = [(norm["running_var"] + EPS).sqrt() for norm in (one, two)]
    # Both see the same vector x; z is what the first BatchNorm makes of it before its weight and bias.
    factor = two["weight"] * scales[0] / scales[1]
    shift = two["weight"] * (one["running_mean"] - two["running_mean"]) / scales[1] + two["bias"]
    first, second = state["head.linear.weight"], state["head_dist.linear.weight"]
    biases = state["head.linear.bias"] + state["head_dist.linear.bias"]
    state["head.linear.weight"] = (first * one["weight"] + second * factor) / 2
    state["head.linear.bias"] = (first @ one["bias"] + second @ shift + biases) / 2
    state["head.bn.weight"], state["head.bn.bias"] = torch.ones_like(factor), torch.zeros_like(shift)
    for key in [key for key in state if key.startswith("head_dist.")]:
        del state[key]


def from_timm_levit(state: State) -> dict[str, Tensor]:
    """Renames the weights of timm's `levit_128s`, `levit_128`, `levit_192`, `levit_256` or `levit_384` for `vix.LeViT`.

    Distilled weights have a second head; it is folded into the first, so that logits are the mean of the two as in
    timm's inference. timm's variants that are convolutions throughout (`levit_conv_*`) have maps of 1x1 where these
    have linear maps, and are not taken.

    Args:
        state: The state dict of the timm model.

    Raises:
        ValueError: If it holds anything else.
    """
    state = dict(state)
    if "head_dist.linear.weight" in state:
        _average_heads(state)
    order = {(int(stage), -1 if block is None else int(block)) for stage, block in _levit_blocks(state)}
    places = {place: index for index, place in enumerate(sorted(order))}
    rules = [(r"head\.bn\.(\w+)", r"norm.\1"), (r"head\.linear\.(\w+)", r"head.\1")]
    for index in range(4):
        # Theirs counts convolutions from 1, ours counts the activations between them too.
        rules.append((rf"stem\.conv{index + 1}\.linear\.weight", f"stem.{2 * index}.conv.weight"))
        rules.append((rf"stem\.conv{index + 1}\.bn\.(\w+)", rf"stem.{2 * index}.norm.\1"))
    for (stage, block), index in places.items():
        theirs = rf"stages\.{stage}\." + ("downsample" if block < 0 else rf"blocks\.{block}")
        attention = rf"{theirs}\.attn(?:_downsample)?"
        for part, name in (
            (rf"{attention}\.qkv", "attention.qkv"),
            (rf"{attention}\.q\.ln", "attention.queries"),
            (rf"{attention}\.kv", "attention.keys_values"),
            (rf"{attention}\.proj\.ln", "attention.output"),
            (rf"{theirs}\.mlp\.ln1", "expand"),
            (rf"{theirs}\.mlp\.ln2", "contract"),
        ):
            rules.append((rf"{part}\.linear\.weight", f"blocks.{index}.{name}.linear.weight"))
            rules.append((rf"{part}\.bn\.(\w+)", rf"blocks.{index}.{name}.norm.\1"))
        rules.append((rf"{attention}\.attention_biases", f"blocks.{index}.attention.bias.table"))
    renamed = _rename(state, rules, "timm's LeViT")
    for prefix in [key.removesuffix("qkv.linear.weight") for key in renamed if key.endswith("qkv.linear.weight")]:
        _split_joint(renamed, prefix)
    return renamed


def _levit_blocks(state: State) -> set[tuple[str, str | None]]:
    pattern = re.compile(r"stages\.(\d+)\.(?:downsample|blocks\.(\d+))\.")
    return {(found[1], found[2]) for key in state if (found := pattern.match(key))}


def from_transformers_cvt(state: State, heads: Iterable[int] = (1, 3, 6)) -> dict[str, Tensor]:
    """Renames the weights of transformers' `CvtForImageClassification` for `vix.CvT`.

    That code divides logits by the square root of the width of all heads, ours by that of one; the difference goes into
    the weights of the queries.

    Args:
        state: The state dict of the transformers model.
        heads: Number of heads in each stage.

    Raises:
        ValueError: If it holds anything else.
    """
    stage = r"cvt\.encoder\.stages\.(\d)"
    layer = rf"{stage}\.layers\.(\d+)"
    rules = [
        (rf"{stage}\.cls_token", r"stages.\1.class_token"),
        (rf"{stage}\.embedding\.convolution_embeddings\.projection\.(\w+)", r"stages.\1.embedding.project.\2"),
        (rf"{stage}\.embedding\.convolution_embeddings\.normalization\.(\w+)", r"stages.\1.embedding.norm.\2"),
        (rf"{layer}\.layernorm_before\.(\w+)", r"stages.\1.blocks.\2.attention_norm.\3"),
        (rf"{layer}\.layernorm_after\.(\w+)", r"stages.\1.blocks.\2.mlp_norm.\3"),
        (rf"{layer}\.attention\.output\.dense\.(\w+)", r"stages.\1.blocks.\2.attention.output.\3"),
        (rf"{layer}\.intermediate\.dense\.(\w+)", r"stages.\1.blocks.\2.mlp.expand.\3"),
        (rf"{layer}\.output\.dense\.(\w+)", r"stages.\1.blocks.\2.mlp.contract.\3"),
        (r"layernorm\.(\w+)", r"norm.\1"),
        (r"classifier\.(\w+)", r"head.\1"),
    ]
    for theirs, ours in (("query", "queries"), ("key", "keys"), ("value", "values")):
        convolution = rf"{layer}\.attention\.attention\.convolution_projection_{theirs}\.convolution_projection"
        projection = rf"stages.\1.blocks.\2.attention.{ours}"
        rules += [
            (rf"{convolution}\.convolution\.weight", rf"{projection}.convolution.conv.weight"),
            (rf"{convolution}\.normalization\.(\w+)", rf"{projection}.convolution.norm.\3"),
            (rf"{layer}\.attention\.attention\.projection_{theirs}\.(\w+)", rf"{projection}.project.\3"),
        ]
    renamed = _rename(state, rules, "transformers' CvT")
    for index, count in enumerate(heads):
        query = re.compile(rf"stages\.{index}\.blocks\.\d+\.attention\.queries\.project\.\w+")
        renamed |= {key: value * count**-0.5 for key, value in renamed.items() if query.fullmatch(key)}
    return renamed


def from_vit_pytorch_cct(state: State) -> dict[str, Tensor]:
    """Renames the weights of vit-pytorch's `CCT`, and of those of its authors that have the same names, for `vix.CCT`.

    The names are those of vit-pytorch 1.26. A table of sines is left out: ours is computed.

    Args:
        state: The state dict of the vit-pytorch model.

    Raises:
        ValueError: If it holds anything else.
    """
    state = dict(state)
    table = state.get("classifier.positional_emb")
    # The first row of sines and cosines is 0, 1, 0, 1 and so on.
    if table is not None and torch.equal(table[0, 0], torch.arange(table.shape[-1]).remainder(2).to(table)):
        del state["classifier.positional_emb"]
    block = r"classifier\.blocks\.(\d+)"
    rules = [
        (r"tokenizer\.conv_layers\.(\d)\.0\.weight", r"tokenizer.convolutions.\1.weight"),
        (r"classifier\.positional_emb", "position.table"),
        (r"classifier\.attention_pool\.(\w+)", r"pool.weigh.\1"),
        (rf"{block}\.pre_norm\.(\w+)", r"blocks.\1.mixer_norm.\2"),
        (rf"{block}\.self_attn\.qkv\.(\w+)", r"blocks.\1.mixer.project.\2"),
        (rf"{block}\.self_attn\.proj\.(\w+)", r"blocks.\1.mixer.output.\2"),
        (rf"{block}\.norm1\.(\w+)", r"blocks.\1.mlp_norm.\2"),
        (rf"{block}\.linear1\.(\w+)", r"blocks.\1.mlp.expand.\2"),
        (rf"{block}\.linear2\.(\w+)", r"blocks.\1.mlp.contract.\2"),
        (r"classifier\.norm\.(\w+)", r"norm.\1"),
        (r"classifier\.fc\.(\w+)", r"head.\1"),
    ]
    return _rename(state, rules, "vit-pytorch's CCT")
