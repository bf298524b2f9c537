"""Charts as SVG text, without a library: curves by epoch, and scores against cost with their Pareto front."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from vix.commands.report.runs import Row

WIDTH, HEIGHT = 900, 460
LEFT, RIGHT, TOP, BOTTOM = 62, 150, 16, 46
# Colour says how tokens are mixed, the mark which body they are in; both after Okabe and Ito, told apart by all eyes.
COLOURS = {
    "softmax": "#0072b2",
    "Linformer": "#e69f00",
    "Performer": "#d55e00",
    "Nyström": "#009e73",
    "Fourier": "#cc79a7",
    "MLP": "#56b4e9",
    "other": "#555555",
}
MARKS = ("plain", "hybrid", "LeViT", "CvT", "CCT")
DASHES = {"plain": "", "hybrid": "7 3", "LeViT": "2 2", "CvT": "9 3 2 3", "CCT": "12 4"}
# Attention by the letter that ends a system's name; FNet and MLPMixer are asked for first.
LETTERS = {"T": "softmax", "L": "Linformer", "P": "Performer", "N": "Nyström"}


def kind(row: Row) -> tuple[str, str]:
    """How a row's net mixes tokens, and its body: keys of `COLOURS` and one of `MARKS`."""
    name = row.first.net[0]
    hybrid, plain = name.startswith("Hybrid"), name.removeprefix("Hybrid")
    body = next(
        (mark for mark, start in {"LeViT": "LeVi", "CvT": "Cv", "CCT": "CC"}.items() if plain.startswith(start)), ""
    )
    if plain in ("FNet", "FNet2D"):
        mixing = "Fourier"
    elif plain == "MLPMixer":
        mixing = "MLP"
    else:
        mixing = LETTERS.get(plain[-1:], "other") if body or plain.startswith("Vi") else "other"
    return mixing, body or ("hybrid" if hybrid else "plain")


@dataclass(frozen=True)
class Axis:
    """Places values along a side of the chart.

    Args:
        low: Value at `start`.
        high: Value at `end`.
        start: In pixels.
        end: In pixels.
        logarithmic: Whether equal ratios take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (math.log(each) if self.logarithmic else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """About five round values, or where logarithmic those of 1, 2 and 5 times a power of ten."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]


def curves(rows: Sequence[Row]) -> str:
    """Validation top-1 by epoch, mean over seeds; empty where no row has two epochs."""
    drawn = [(row, points) for row in rows if len(points := list(row.curve.items())) > 1]
    if not drawn:
        return ""
    x = Axis(1, max(epoch for _, points in drawn for epoch, _ in points), LEFT, WIDTH - RIGHT)
    y = _percentages(value for _, points in drawn for _, value in points)
    parts, labels = [_frame(x, y, "epoch", "validation top-1 %")], _Labels()
    for row, points in sorted(drawn, key=lambda each: -each[1][-1][1]):
        colour, dash = COLOURS[kind(row)[0]], DASHES[kind(row)[1]]
        path = " ".join(f"{x(epoch):.1f},{y(value * 100):.1f}" for epoch, value in points)
        told = f"{row.label}: {points[-1][1]:.2%} after epoch {points[-1][0]}"
        parts.append(
            f'<g class="series"><title>{escape(told)}</title>'
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-dasharray="{dash}"/>'
            f"{labels.beside(x(points[-1][0]), y(points[-1][1] * 100), row.label, colour)}</g>"
        )
    return _svg("Learning curves", parts)


def pareto(rows: Sequence[Row], cost: str, title: str, unit: float = 1) -> str:
    """Scores against a cost, with the front of those that nothing cheaper beats; empty where the cost is not known.

    Args:
        rows: What to draw.
        cost: Name of a score of the runs.
        title: The cost in words, with its unit.
        unit: What the cost is divided by.
    """
    points = [
        (value / unit, score, row)
        for row in rows
        if (value := row.mean(cost)) and value > 0 and (score := row.score) is not None
    ]
    if not points:
        return ""
    costs = [each[0] for each in points]
    x = Axis(min(costs) / 1.3, max(costs) * 1.3, LEFT, WIDTH - RIGHT, logarithmic=True)
    y = _percentages(each[1] for each in points)
    tested = all(row.values("test/top1") for _, _, row in points)
    parts, labels = [_frame(x, y, title, f"{'test' if tested else 'test or best validation'} top-1 %")], _Labels()
    best = front([(each, score) for each, score, _ in points])
    path = " ".join(f"{x(points[place][0]):.1f},{y(points[place][1] * 100):.1f}" for place in best)
    parts.append(f'<polyline class="front" points="{path}"/>')
    # the front's labels are placed first, so that they get the room
    for place in [*best, *(place for place in range(len(points)) if place not in best)]:
        value, score, row = points[place]
        mixing, body = kind(row)
        there = (x(value), y(score * 100))
        spread = row.deviation("test/top1" if row.values("test/top1") else "best/top1") or 0.0
        low, high = (max(TOP, min(HEIGHT - BOTTOM, y((score + sign * spread) * 100))) for sign in (-1, 1))
        told = f"{row.label}: {score:.2%} ± {spread * 100:.2f}, {value:,.3g} {title}"
        parts.append(
            f'<g class="series"><title>{escape(told)}</title>'
            f'<line x1="{there[0]:.1f}" x2="{there[0]:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{COLOURS[mixing]}"/>'
            f"{_mark(body, *there, COLOURS[mixing], hollow=not row.first.net[1].startswith('rope'))}"
            f"{labels.beside(*there, row.label, COLOURS[mixing])}</g>"
        )
    return _svg(f"Accuracy against {title}", parts)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, score) that no point of the same or less cost equals or beats, by cost."""
    best, kept = -math.inf, []
    for place in sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1])):
        if points[place][1] > best:
            best = points[place][1]
            kept.append(place)
    return kept


def shares(table: Mapping[str, Mapping[float, float]], rows: Mapping[str, Row]) -> str:
    """Scores by the share of training images, one line a system; empty where there is but one share.

    Args:
        table: Scores by label, then by share.
        rows: A row for each label, which chooses colour and dash.
    """
    drawn = {label: sorted(found.items()) for label, found in table.items() if len(found) > 1}
    if not drawn:
        return ""
    x = Axis(min(each[0][0] for each in drawn.values()) * 100, 100, LEFT, WIDTH - RIGHT, logarithmic=True)
    y = _percentages(value for points in drawn.values() for _, value in points)
    parts, labels = [_frame(x, y, "% of the training images", "test top-1 %")], _Labels()
    for label, points in sorted(drawn.items(), key=lambda each: -each[1][-1][1]):
        mixing, body = kind(rows[label])
        there = [(x(share * 100), y(value * 100)) for share, value in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there)
        parts.append(
            f'<g class="series"><title>{escape(label)}</title><polyline points="{path}" fill="none" '
            f'stroke="{COLOURS[mixing]}" stroke-dasharray="{DASHES[body]}"/>'
            f"{''.join(_mark(body, a, b, COLOURS[mixing], hollow=False) for a, b in there)}"
            f"{labels.beside(*there[-1], label, COLOURS[mixing])}</g>"
        )
    return _svg("Accuracy by the amount of data", parts)


def legend(rows: Sequence[Row]) -> str:
    """What colours and marks say, of those that are there."""
    kinds = [kind(row) for row in rows]
    words = [
        f'<span><svg width="14" height="14" aria-hidden="true">{_mark("plain", 7, 7, colour, hollow=False)}</svg>'
        f"{escape(name)}</span>"
        for name, colour in COLOURS.items()
        if any(name == mixing for mixing, _ in kinds)
    ]
    words += [
        f'<span><svg width="14" height="14" aria-hidden="true">{_mark(mark, 7, 7, "#555", hollow=False)}</svg>'
        f"{escape(mark)}</span>"
        for mark in MARKS
        if any(mark == body for _, body in kinds)
    ]
    return f'<p class="legend">{" ".join(words)} <span>filled: rotary positions</span></p>'


class _Labels:
    """Sets names beside points where there is room, and leaves them out where there is none: hovering shows them."""

    def __init__(self) -> None:
        self._taken: list[tuple[float, float, float, float]] = []

    def beside(self, x: float, y: float, text: str, colour: str) -> str:
        width = 6.1 * len(text)
        for down in (4, -7, 15, -17, 25):
            box = (x + 7, y + down - 9, x + 7 + width, y + down + 2)
            if box[2] < WIDTH and all(_apart(box, other) for other in self._taken):
                self._taken.append(box)
                return f'<text x="{x + 7:.1f}" y="{y + down:.1f}" fill="{colour}">{escape(text)}</text>'
        return ""


def _apart(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def _percentages(values: Iterable[float]) -> Axis:
    given = [value * 100 for value in values]
    margin = max(0.5, 0.06 * (max(given) - min(given)))
    return Axis(max(0.0, min(given) - margin), min(100.0, max(given) + margin), HEIGHT - BOTTOM, TOP)


def _frame(x: Axis, y: Axis, across: str, up: str) -> str:
    bottom = HEIGHT - BOTTOM
    lines = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
        for tick in map(_round, y.ticks())
    ]
    lines += [
        f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{bottom}"/>'
        f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,g}</text>'
        for tick in map(_round, x.ticks())
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    lines.append(
        f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(up)}</text>'
    )
    return "".join(lines)


def _round(value: float) -> float:
    """Without what binary fractions add to a tick."""
    return float(f"{value:.6g}")


def _mark(body: str, x: float, y: float, colour: str, *, hollow: bool) -> str:
    shapes: dict[str, Callable[[], str]] = {
        "plain": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"',
        "hybrid": lambda: f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"',
        "LeViT": lambda: f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"',
        "CvT": lambda: f'<path d="M{x:.1f} {y - 6:.1f}l5 6l-5 6l-5 -6z"',
        "CCT": lambda: f'<path d="M{x:.1f} {y + 5:.1f}l5 -9h-10z"',
    }
    fill = "#fff" if hollow else colour
    return f'{shapes[body]()} fill="{fill}" stroke="{colour}" stroke-width="1.6"/>'


def _svg(title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )
