"""An explanation as pictures: maps over the image, a head each, and the numbers by layer.

Colours are weights in multiples of the map's mean: an even map stays dark, and the number in the corner says how far
the brightest place stands out. Signed maps are red where a value is added and blue where it is taken away.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from torch import Tensor

from vix.commands.explain.numbers import likeliest, mean
from vix.explain import Explanation, Layer
from vix.explain.mixing import on_grid

HEADS = 8
"""Heads of a layer that are drawn; the mean is of all."""
CELL = 1.25
"""Side of a small map in inches."""
INK, SOFT, ACCENT = "#1f2430", "#7a8194", "#d1495b"
SMALL_IMAGE = 16
"""Side in pixels up to which an image's outline is drawn, since its own pixels say little under a map."""
LEAST_PEAK = 3.0
"""Multiple of the mean that has the brightest colour, where none is higher: even maps stay dark."""


def overview(found: Explanation, pixels: Tensor, title: str, names: Sequence[str]) -> Figure:
    """Draws the image, the rollout, the classes, every head of every layer, and the numbers.

    Args:
        found: What was found.
        pixels: The image (channels y x), 0 to 1.
        title: Names the net and the image.
        names: One a class.
    """
    columns = 1 + max(min(len(layer.mixing.heads), HEADS) for layer in found.layers)
    columns = max(columns, 5)
    rows = len(found.layers)
    width, height = CELL * columns + 1.5, 2.6 + (CELL + 0.12) * rows + 2.1
    figure = Figure(figsize=(width, height), facecolor="white")
    parts: Any = figure.subfigures(3, 1, height_ratios=[2.6, (CELL + 0.12) * rows, 2.1])
    top, middle, bottom = parts
    _head(top, found, pixels, title, names)
    grid = middle.subplots(rows, columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.08})
    middle.subplots_adjust(left=1.35 / width, right=1 - 0.1 / width, top=1 - 0.22 / ((CELL + 0.12) * rows), bottom=0.01)
    titled = 0
    for number, (layer, line) in enumerate(zip(found.layers, grid, strict=True), start=1):
        titled = _layer(line, layer, pixels, number, titled)
    _numbers(bottom, found)
    return figure


def single_tokens(found: Explanation, pixels: Tensor, title: str) -> Figure:
    """Draws what three tokens look at in the first, the middle and the last layer, beside exact softmax attention.

    Args:
        found: What was found.
        pixels: The image (channels y x), 0 to 1.
        title: Names the net and the image.
    """
    numbers = sorted({0, len(found.layers) // 2, len(found.layers) - 1})
    # none of them on the border of two tokens of the usual grids
    places = [(0.3, 0.3), (0.55, 0.55), (0.8, 0.8)]
    lines = [[panel for number in numbers for panel in _panels(found.layers[number], number + 1, *at)] for at in places]
    columns = 1 + len(lines[0])
    width, height = (CELL + 0.2) * columns + 0.2, (CELL + 0.2) * len(places) + 0.95
    figure = Figure(figsize=(width, height), facecolor="white")
    figure.suptitle(f"{title}: what three tokens look at", x=0.1 / width, ha="left", y=1 - 0.1 / height, **_heading())
    axes = figure.subplots(len(places), columns, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06})
    figure.subplots_adjust(left=0.1 / width, right=1 - 0.1 / width, top=1 - 0.78 / height, bottom=0.1 / height)
    for turn, (row, panels, (down, across)) in enumerate(zip(axes, lines, places, strict=True)):
        _image(row[0], pixels)
        for place, (words, weights, signed) in zip(row[1:], panels, strict=True):
            _map(place, weights, pixels, signed=signed)
            if turn == 0:
                place.set_title(words, fontsize=7.5, color=INK if words.startswith("layer") else SOFT, pad=4)
        for place in row:
            _marker(place, down * found.image_size[0], across * found.image_size[1])
    return figure


def _panels(layer: Layer, number: int, down: float, across: float) -> list[tuple[str, Tensor, bool]]:
    """What the token at a place looks at: words, a map (y x), and whether it has signs."""
    mixing = layer.mixing
    name = mixing.kind.removesuffix("Attention")
    rows, columns = mixing.queries.grid
    indices = torch.tensor([mixing.queries.prefix + int(down * rows) * columns + int(across * columns)])
    own = on_grid(mixing.rows(indices)[:, 0], mixing.keys)
    if mixing.exact is None:
        return [
            (f"layer {number}\n{name}, {head}", weights, layer.is_signed)
            for head, weights in zip(mixing.heads, own, strict=True)
        ]
    panels = [(f"layer {number}\n{name}", _mean_of_heads(own, signed=layer.is_signed), False)]
    if not mixing.is_exact:
        exact = on_grid(mixing.exact(indices)[:, 0], mixing.keys)
        panels.append(("softmax of the\nsame q and k", exact.mean(dim=0), False))
    return panels


def _mean_of_heads(maps: Tensor, *, signed: bool) -> Tensor:
    # Signs of different heads are of different values, so only sizes can be averaged.
    return maps.abs().mean(dim=0) if signed else maps.mean(dim=0)


def _head(figure: SubFigure, found: Explanation, pixels: Tensor, title: str, names: Sequence[str]) -> None:
    width = figure.figure.get_figwidth()
    figure.suptitle(title, x=0.1 / width, ha="left", y=0.97, **_heading())
    left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, max(0.6, (width - 4.6) / 1.9)])
    figure.subplots_adjust(left=0.1 / width, right=1 - 0.25 / width, top=0.80, bottom=0.04, wspace=0.12)
    _image(left, pixels)
    left.set_title("image", **_caption())
    _map(middle, found.rollout, pixels, signed=False)
    middle.set_title("rollout to the classifier", **_caption())
    best = likeliest(found, names)
    places = range(len(best))
    right.barh(places, [each for _, each in best], color=[ACCENT, *["#c9cdd8"] * (len(best) - 1)], height=0.28)
    for place, (name, probability) in enumerate(best):
        right.text(0, place - 0.2, f"{name}  {probability:.1%}", fontsize=8, color=INK, va="bottom")
    right.set(xlim=(0, 1), ylim=(len(best) - 0.6, -0.75), yticks=[], xticks=[])
    right.set_title("classes", **_caption())
    right.spines[:].set_visible(False)


def _layer(line: Any, layer: Layer, pixels: Tensor, number: int, titled: int) -> int:
    """Draws a layer's heads, and says how many columns have a title now.

    Over a column's first map nothing is drawn, as layers above have fewer heads: the title goes there.
    """
    mixing = layer.mixing
    several = len(mixing.heads) > 1
    maps, titles = list(layer.maps), ["all heads" if mixing.heads[0].isdigit() else mixing.heads[0]]
    if several:
        maps = [_mean_of_heads(layer.maps, signed=layer.is_signed), *maps[:HEADS]]
        titles = ["all heads", *(f"head {head}" if head.isdigit() else head for head in mixing.heads)]
    for place, axes in enumerate(line):
        if place >= len(maps):
            axes.set_visible(False)
            continue
        _map(axes, maps[place], pixels, signed=layer.is_signed and (place > 0 or not several))
        if place >= titled:
            axes.set_title(titles[place], fontsize=8, color=SOFT, pad=3)
    tokens = f"{mixing.queries.count} tokens"
    if mixing.queries.count != mixing.keys.count:
        tokens = f"{mixing.queries.count} ask\n{mixing.keys.count} answer"
    line[0].text(
        -0.08,
        0.5,
        f"layer {number}",
        transform=line[0].transAxes,
        ha="right",
        va="bottom",
        fontsize=9,
        color=INK,
        weight="bold",
    )
    line[0].text(
        -0.08,
        0.46,
        f"{mixing.kind.removesuffix('Attention')}\n{tokens}",
        transform=line[0].transAxes,
        ha="right",
        va="top",
        fontsize=7,
        color=SOFT,
    )
    return max(titled, len(maps))


def _numbers(figure: SubFigure, found: Explanation) -> None:
    width = figure.figure.get_figwidth()
    layers = range(1, len(found.layers) + 1)
    drawn: list[tuple[str, str, list[float] | None]] = [
        ("entropy", "entropy, nats", [layer.uniform["entropy"] for layer in found.layers]),
        ("distance", "mean distance, pixels", [layer.uniform["distance"] for layer in found.layers]),
        ("effective_rank", "effective rank", None),
        ("matrix_error", "error to softmax", None),
    ]
    # Softmax has no error to itself, and FNet and MLP-Mixer no queries and keys.
    if all(layer.mixing.exact is None or layer.mixing.is_exact for layer in found.layers):
        del drawn[-1]
    panels = figure.subplots(1, len(drawn), squeeze=False)[0]
    figure.subplots_adjust(left=0.45 / width, right=1 - 0.15 / width, top=0.82, bottom=0.2, wspace=0.3)
    for axes, (name, words, uniform) in zip(panels, drawn, strict=True):
        for number, layer in zip(layers, found.layers, strict=True):
            values = layer.statistics[name].tolist()
            axes.scatter([number] * len(values), values, s=14, color="#9aa3b8", linewidths=0, zorder=2)
        axes.plot(layers, [mean(layer, name) for layer in found.layers], color=ACCENT, linewidth=1.4, zorder=3)
        if uniform is not None:
            axes.plot(layers, uniform, color=INK, linewidth=0.9, linestyle=(0, (3, 2)), zorder=1)
            axes.annotate(
                "all alike",
                (layers[0], uniform[0]),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=6.5,
                color=INK,
            )
        axes.set_title(words, **_caption())
        axes.set_ylim(bottom=0, top=1.12 * axes.get_ylim()[1])
        axes.set_xticks(list(layers)[:: max(1, len(layers) // 6)])
        axes.set_xlim(0.6, len(layers) + 0.4)
        axes.tick_params(labelsize=7, colors=SOFT, length=0)
        axes.grid(axis="y", color="#e6e8ee", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("layer", fontsize=7, color=SOFT, labelpad=2)


def _image(axes: Axes, pixels: Tensor) -> None:
    axes.imshow(_colours(pixels), extent=_extent(pixels), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
    _bare(axes)


def _map(axes: Axes, weights: Tensor, pixels: Tensor, *, signed: bool) -> None:
    """Draws a map (y x) over the image."""
    is_small = max(pixels.shape[-2:]) <= SMALL_IMAGE
    axes.imshow(
        pixels.mean(dim=0).numpy(), extent=_extent(pixels), interpolation="nearest", cmap="gray", vmin=-0.1, vmax=1.1
    )
    average = weights.abs().mean().clamp_min(1e-30)
    relative = weights / average
    peak = relative.abs().max().item()
    limit = max(peak, LEAST_PEAK)
    smooth = "nearest" if max(weights.shape) <= SMALL_IMAGE else "bilinear"
    colours: dict[str, Any] = (
        {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit} if signed else {"cmap": "inferno", "vmin": 0, "vmax": limit}
    )
    axes.imshow(
        relative.numpy(), extent=_extent(pixels), interpolation=smooth, alpha=1 if is_small else 0.66, **colours
    )
    if is_small:
        height, width = pixels.shape[-2:]
        centres = np.arange(width) + 0.5, np.arange(height) + 0.5
        axes.contour(
            *centres,
            pixels.mean(dim=0).numpy(),
            levels=[0.4],
            colors=[INK if signed else "white"],
            linewidths=0.8,
            alpha=0.85,
        )
    words = f"{peak:.2g}×" if peak < 99.5 else f"{peak:.0f}×"
    axes.text(
        0.97,
        0.04,
        words if weights.numel() > 1 else "one place",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=6,
        color="white",
        bbox={"facecolor": "#000000", "alpha": 0.45, "edgecolor": "none", "pad": 1.2},
    )
    _bare(axes)


def _marker(axes: Axes, y: float, x: float) -> None:
    axes.plot([x], [y], marker="o", markersize=6, markerfacecolor="none", markeredgecolor="black", markeredgewidth=2.4)
    axes.plot(
        [x], [y], marker="o", markersize=6, markerfacecolor="none", markeredgecolor="#7CFC7C", markeredgewidth=1.2
    )


def _colours(pixels: Tensor) -> Any:
    return (pixels.permute(1, 2, 0) if len(pixels) == 3 else pixels.mean(dim=0)).numpy()


def _extent(pixels: Tensor) -> tuple[float, float, float, float]:
    return 0, pixels.shape[-1], pixels.shape[-2], 0


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _heading() -> dict[str, Any]:
    return {"fontsize": 11, "color": INK, "weight": "bold"}


def _caption() -> dict[str, Any]:
    return {"fontsize": 8, "color": SOFT, "loc": "left", "pad": 4}
