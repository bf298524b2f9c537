"""Training steps of our systems against other packages': the same weights, logits compared first, speed only then.

    python -m benchmarks.peers --peers <folder>      # benchmarks/README.md says how to fill the folder

Batch 8, float32, 32x32 images in patches of one pixel, dim 128, depth 4, 4 heads of 32, mlp 256, no dropout: as
published.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vix
from benchmarks.harness import TrainingStep, chosen, columns, compare, in_processes, options
from benchmarks.packages import (
    Packages,
    linformer_module,
    nystrom_module,
    performer_module,
    with_modules,
    with_plain_layers,
)
from vix import published

SIZES = {"image_size": 32, "patch_size": 1, "num_classes": 10, "dim": 128, "depth": 4, "mlp_dim": 256}
HEADS = {"heads": 4, "dim_head": 32}
TOLERANCE = 1e-4
"""Of the largest logit."""
NEAR_ROOFLINE = 1.25
Nets = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Comparison:
    """One row of the table.

    Args:
        name: Our system.
        against: The package's.
        nets: Makes both, with the same weights.
        faster: How many times longer the other's step must take, at least; None where nothing is promised.
        bytes: Our bytes kept over the other's, at most.
        tolerance: Largest difference of logits, over the largest logit.
        note: What is not as in the other rows.
    """

    name: str
    against: str
    nets: Callable[[Packages], Nets]
    faster: float | None = None
    bytes: float | None = None
    tolerance: float = TOLERANCE
    note: str = ""


def vision_xformer(system: str, options: dict[str, Any], packages: Packages) -> Nets:
    """Makes a model of vision-xformer, and ours with its weights."""
    arguments = SIZES | options
    theirs = packages.vision_xformer(system, arguments)
    return published.load(f"pip_{system}", arguments, theirs.state_dict()), theirs


def vit_pytorch(packages: Packages) -> Nets:
    """Makes vit-pytorch's ViT with our weights."""
    ours = vix.ViT(embedding="linear_normed", **SIZES, **HEADS)
    theirs = packages.vit_pytorch.ViT(**SIZES, **HEADS)
    names = {
        "class_token": "cls_token",
        "position.table": "pos_embedding",
        "embedding.patch_norm": "to_patch_embedding.1",
        "embedding.project": "to_patch_embedding.2",
        "embedding.token_norm": "to_patch_embedding.3",
        "norm": "transformer.norm",
        "head": "mlp_head",
    }
    parts = {
        "mixer_norm": "0.norm",
        "mixer.project": "0.to_qkv",
        "mixer.output": "0.to_out.0",
        "mlp_norm": "1.net.0",
        "mlp.expand": "1.net.1",
        "mlp.contract": "1.net.4",
    }
    return ours, renamed(ours, theirs, names, parts, "transformer.layers")


def timm(packages: Packages) -> Nets:
    """Makes timm's ViT, whose attention is fused, with our weights."""
    ours = vix.ViT(**SIZES, **HEADS)
    theirs = packages.timm.models.VisionTransformer(
        img_size=32,
        patch_size=1,
        num_classes=10,
        embed_dim=128,
        depth=4,
        num_heads=4,
        mlp_ratio=2,
        qkv_bias=False,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )
    names = {
        "class_token": "cls_token",
        "position.table": "pos_embed",
        "embedding.project": "patch_embed.proj",
        "norm": "norm",
        "head": "head",
    }
    parts = {
        "mixer_norm": "norm1",
        "mixer.project": "attn.qkv",
        "mixer.output": "attn.proj",
        "mlp_norm": "norm2",
        "mlp.expand": "mlp.fc1",
        "mlp.contract": "mlp.fc2",
    }
    return ours, renamed(ours, theirs, names, parts, "blocks")


def renamed(ours: nn.Module, theirs: nn.Module, names: dict[str, str], parts: dict[str, str], blocks: str) -> nn.Module:
    """Gives another ViT our weights; every weight of both must find its place."""
    names = names | {
        f"blocks.{index}.{ours_}": f"{blocks}.{index}.{theirs_}"
        for index in range(4)
        for ours_, theirs_ in parts.items()
    }
    shapes = theirs.state_dict()
    weights = {}
    for key, value in ours.state_dict().items():
        module, _, leaf = key.rpartition(".")
        name = names[key] if key in names else f"{names[module]}.{leaf}"
        # A table (1 n c) is (n c) there, and a linear map of pixels a convolution.
        weights[name] = value.reshape(shapes[name].shape)
    theirs.load_state_dict(weights)
    return theirs


def swapped(
    make: Callable[[], nn.Module], module: Callable[[Packages], Callable[..., nn.Module]], packages: Packages
) -> Nets:
    """Makes our net, and the same with a package's self-attention in its blocks."""
    ours = make()
    return ours, with_modules(ours, module(packages))


def published_body(system: str, packages: Packages) -> Nets:
    """Makes a published net, and the same body, plainly written, around nystrom-attention's module."""
    original = published.original(system)
    # Stochastic depth would compute other branches on either side.
    options = {"drop_path": 0.0} if original.family == "cct" else {}
    ours = original.net(**original.init_args(original.script) | options)
    return ours, with_plain_layers(with_modules(ours, _nystrom(packages)))


def _nystrom(packages: Packages) -> Callable[..., nn.Module]:
    return partial(nystrom_module, package=packages.nystrom_attention)


def _linformer(packages: Packages) -> Callable[..., nn.Module]:
    return partial(linformer_module, package=packages.linformer)


def _performer(packages: Packages) -> Callable[..., nn.Module]:
    return partial(performer_module, package=packages.performer_pytorch)


PLAIN = SIZES | HEADS
COMPARISONS = (
    Comparison("ViT", "vit-pytorch ViT", vit_pytorch, 1.15, 1 / 3),
    Comparison(
        "ViN, 256 landmarks",
        "vision-xformer ViN, 256",
        partial(vision_xformer, "ViN", {**HEADS, "num_landmarks": 256}),
        3,
        1 / 4,
    ),
    Comparison(
        "ViN, 64 landmarks",
        "vision-xformer ViN, 64",
        partial(vision_xformer, "ViN", {**HEADS, "num_landmarks": 64}),
        1.3,
        1 / 2,
    ),
    Comparison("ViP", "vision-xformer ViP", partial(vision_xformer, "ViP", HEADS), 1.3, 1 / 2, note="torch.qr mended"),
    Comparison("ViL", "vision-xformer ViL", partial(vision_xformer, "ViL", HEADS), 1.0, 2 / 3),
    Comparison("FNet", "vision-xformer FNet", partial(vision_xformer, "FNet", {}), 1.25, 2 / 3),
    *(
        Comparison(
            system,
            f"nystrom-attention in {system}",
            partial(published_body, system),
            1.3,
            1 / 2,
            note="64x64 images in 1,024 tokens, 200 classes, as published; the other's body is written plainly",
        )
        for system in ("CCN", "CvN", "LeViN")
    ),
    Comparison("ViT (timm)", "timm VisionTransformer", timm),
    Comparison(
        "ViN (kernel)",
        "nystrom-attention in ViN",
        partial(swapped, partial(vix.ViN, as_published=True, **PLAIN), _nystrom),
    ),
    Comparison(
        "ViL (kernel)",
        "linformer in ViL",
        partial(swapped, partial(vix.ViL, one_kv_head=True, share_kv=True, **PLAIN), _linformer),
    ),
    Comparison(
        "ViP (kernel)",
        "performer-pytorch in ViP",
        partial(swapped, partial(vix.ViP, as_published=True, qkv_bias=True, **PLAIN), _performer),
        tolerance=1e-2,
        note="version 1.1.4 stabilises keys per head, the published code per batch: logits differ",
    ),
)


def difference(ours: nn.Module, theirs: nn.Module, images: torch.Tensor) -> float:
    """Returns the largest difference of logits over the largest logit, in eval mode."""
    with torch.no_grad():
        mine, other = ours.eval()(images), theirs.eval()(images)
    return float((mine - other).abs().max() / other.abs().max())


def measure(given: Namespace) -> list[dict[str, Any]]:
    """Compares all rows; no speed is measured where logits differ."""
    packages = Packages(given.peers)
    rows = []
    for comparison in COMPARISONS:
        if not chosen(comparison.name, given.rows):
            continue
        torch.manual_seed(0)
        ours, theirs = comparison.nets(packages)
        images = torch.randn(given.batch, 3, *getattr(ours, "image_size", (32, 32)))
        apart = difference(ours, theirs, images)
        row: dict[str, Any] = {
            "ours": comparison.name,
            "against": comparison.against,
            "versions": packages.versions,
            "batch": given.batch,
            "note": comparison.note,
            "logits": apart,
            "targets": {"ratio": comparison.faster, "bytes": comparison.bytes},
        }
        if apart > comparison.tolerance:
            row["met"] = False
        else:
            row |= compare(TrainingStep(ours, images), TrainingStep(theirs, images), given.pairs)
            row["met"] = met(row)
        rows.append(row)
        print(told([row]).splitlines()[-1], file=sys.stderr, flush=True)
    return rows


def met(row: dict[str, Any]) -> bool | None:
    """Whether a row keeps its promise: in bytes, and in time by the ratio or by nearness to the roofline."""
    ratio, kept = row["targets"]["ratio"], row["targets"]["bytes"]
    if ratio is None or kept is None:
        return None
    in_time = row["ratio"][1] >= ratio or row["roofline"]["times"] <= NEAR_ROOFLINE
    return bool(in_time and row["bytes"]["ratio"] <= kept)


def told(rows: list[dict[str, Any]]) -> str:
    """Sets rows as a table."""
    lines = [
        ["ours", "against", "logits", "ms", "theirs", "faster", "quartiles", "at least", "MiB", "ratio", "at most"]
    ]
    lines[0] += ["x roofline", "met"]
    for row in rows:
        line = [row["ours"], row["against"], f"{row['logits']:.0e}"]
        targets = ["" if value is None else f"{value:.3g}" for value in row["targets"].values()]
        if "ratio" not in row:
            lines.append([*line, *[""] * 9, "logits differ"])
            continue
        first, median, third = row["ratio"]
        verdict = {True: "yes", False: "NO", None: ""}[row["met"]]
        kept = row["bytes"]
        lines.append(
            [
                *line,
                f"{row['ours_ms'][1]:.1f}",
                f"{row['theirs_ms'][1]:.1f}",
                f"{median:.2f}",
                f"{first:.2f}-{third:.2f}",
                targets[0],
                f"{kept['ours'] / 2**20:.1f}",
                f"{kept['ratio']:.2f}",
                targets[1],
                f"{row['roofline']['times']:.2f}",
                verdict,
            ]
        )
    return columns(lines)


def main() -> int:
    """Compares as the command line asks."""
    parser = options(__doc__, "peers")
    parser.add_argument("--peers", type=Path, required=True, help="folder that pip install --target filled")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default 8)")
    return in_processes("benchmarks.peers", parser.parse_args(), measure, told)


if __name__ == "__main__":
    sys.exit(main())
