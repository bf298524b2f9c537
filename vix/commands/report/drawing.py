"""What charts are drawn with, as SVG text: axes, frames, marks, and labels that keep clear of each other."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

# What drawings look like, in a page or alone.
STYLE = """
.title { font-size: 13px; font-weight: 600 }
.grid { stroke: #ebebeb } .tick { fill: #777 }
.front { fill: none; stroke: #888; stroke-width: 1.3; stroke-dasharray: 4 3 }
.behind { fill: none; stroke: #e2e2e2 } .lead { fill: none; stroke-opacity: .45 } .spread { stroke-opacity: .55 }
.series polyline { stroke-width: 1.8; stroke-linejoin: round }
svg:has(.series:hover) .series { opacity: .15 } svg .series:hover { opacity: 1 !important }
"""
# Percentages that may be ticks where equal ratios of the error take equal room.
PERCENTAGES = (*range(0, 90, 10), 75, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.5, 99.8, 100)
# Added to an error, in points, so that one of zero has a place.
FLOOR = 0.2
# Pixels that a tick's number needs.
TICK_ROOM = 17
# Width of a letter of a label, in pixels.
LETTER = 6.4


@dataclass(frozen=True)
class Axis:
    """Places values along a side of the chart.

    Args:
        low: Value at `start`.
        high: Value at `end`.
        start: In pixels.
        end: In pixels.
        scale: `linear`; `log`, equal ratios take equal room; `error`, the same for what lacks to 100 %.
    """

    low: float
    high: float
    start: float
    end: float
    scale: Literal["linear", "log", "error"] = "linear"

    def __call__(self, value: float) -> float:
        """Where a value lies, in pixels."""
        low, high, value = (self._stretched(each) for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def _stretched(self, value: float) -> float:
        if self.scale == "error":
            return -math.log(100 + FLOOR - value)
        return math.log(value) if self.scale == "log" else value

    def ticks(self) -> list[float]:
        """About five round values, or where logarithmic those of 1, 2 and 5 times a power of ten."""
        if self.scale == "log":
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            return [m * 10.0**d for d in decades for m in (1, 2, 5) if self.low <= m * 10.0**d <= self.high]
        if self.scale == "error":
            return self._errors()
        rough = (self.high - self.low) / 5
        power = 10 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
        first = math.ceil(self.low / step)
        return [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]

    def _errors(self) -> list[float]:
        """Round percentages that have room, those on top first."""
        kept: list[float] = []
        for value in sorted(PERCENTAGES, reverse=True):
            if self.low <= value <= self.high and all(abs(self(value) - self(other)) > TICK_ROOM for other in kept):
                kept.append(value)
        return kept[::-1]


@dataclass(frozen=True)
class Frame:
    """A chart's outer size and the margins around what is drawn, in pixels."""

    width: int = 1000
    height: int = 480
    left: int = 58
    right: int = 24
    top: int = 14
    bottom: int = 44

    def across(self, low: float, high: float, scale: Literal["linear", "log"] = "linear") -> Axis:
        """An axis from left to right."""
        return Axis(low, high, self.left, self.width - self.right, scale)

    def percentages(self, values: Iterable[float]) -> Axis:
        """An axis of percentages from bottom to top; near 100 % the last points get the room that they are worth."""
        given = [value * 100 for value in values]
        low, high = min(given), max(given)
        margin = max(0.5, 0.06 * (high - low))
        ends = max(0.0, low - margin), min(100.0, high + (margin if high < 90 else 0.3 * (100 - high)))
        return Axis(*ends, self.height - self.bottom, self.top, "error" if high > 90 else "linear")

    def grid(self, x: Axis, y: Axis, across: str, up: str) -> str:
        """Lines, numbers and what the axes mean."""
        right, bottom = self.width - self.right, self.height - self.bottom
        lines = [
            f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
            f'<text class="tick" x="{self.left - 7}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>'
            for tick in map(_round, y.ticks())
        ]
        lines += [
            f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{self.top}" y2="{bottom}"/>'
            f'<text class="tick" x="{x(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:,.10g}</text>'
            for tick in map(_round, x.ticks())
        ]
        middle = (self.left + right) / 2
        lines.append(f'<text x="{middle:.0f}" y="{self.height - 8}" text-anchor="middle">{escape(across)}</text>')
        upright = f"translate(13 {(self.top + bottom) / 2:.0f}) rotate(-90)"
        lines.append(f'<text transform="{upright}" text-anchor="middle">{escape(up)}</text>')
        return "".join(lines)

    def svg(self, title: str, parts: Sequence[str]) -> str:
        """The drawing with its name."""
        return (
            f'<svg viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
        )


Box = tuple[float, float, float, float]


class Labels:
    """Sets names beside points where there is room, and leaves them out where there is none: hovering shows them.

    Args:
        frame: What they must stay inside of.
        points: Marks that no name may cover.
    """

    def __init__(self, frame: Frame, points: Iterable[tuple[float, float]] = ()) -> None:
        self.frame = frame
        self._taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]

    def beside(self, x: float, y: float, text: str, colour: str) -> str:
        """The name of a point: to the right, else to the left, above or below it."""
        width = LETTER * len(text)
        places = [(x + 8, down) for down in (4, -5, 13)] + [(x - 8 - width, down) for down in (4, -5, 13)]
        places += [(x - width / 2, down) for down in (-9, 17)]
        for left, down in places:
            box = (left, y + down - 9, left + width, y + down + 2)
            inside = box[0] > self.frame.left and box[2] < self.frame.width and box[1] > 0
            if inside and all(_apart(box, other) for other in self._taken):
                self._taken.append(box)
                return f'<text class="name" x="{left:.1f}" y="{y + down:.1f}" fill="{colour}">{escape(text)}</text>'
        return ""

    def column(self, x: float, ends: Sequence[tuple[float, str, str]]) -> str:
        """Names of curves (height of the end, name, colour) below each other, each as near to its end as can be."""
        step, lowest = 12.5, self.frame.height - self.frame.bottom
        places: list[float] = []
        for y, _, _ in sorted(ends):
            places.append(max(y, places[-1] + step) if places else y)
        # what ran out at the bottom moves up again
        for number in range(len(places) - 1, -1, -1):
            limit = lowest if number == len(places) - 1 else places[number + 1] - step
            places[number] = min(places[number], limit)
        return "".join(
            f'<path class="lead" d="M{x:.1f} {y:.1f}L{x + 12:.1f} {place:.1f}" stroke="{colour}"/>'
            f'<text class="name" x="{x + 15:.1f}" y="{place + 4:.1f}" fill="{colour}">{escape(text)}</text>'
            for place, (y, text, colour) in zip(places, sorted(ends), strict=True)
        )


def mark(body: str, x: float, y: float, colour: str, *, hollow: bool) -> str:
    """A point whose shape tells the body that a net has."""
    shapes: dict[str, Callable[[], str]] = {
        "plain": lambda: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"',
        "hybrid": lambda: f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"',
        "LeViT": lambda: f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z"',
        "CvT": lambda: f'<path d="M{x:.1f} {y - 6:.1f}l5 6l-5 6l-5 -6z"',
        "CCT": lambda: f'<path d="M{x:.1f} {y + 5:.1f}l5 -9h-10z"',
    }
    fill = "#fff" if hollow else colour
    return f'{shapes[body]()} fill="{fill}" stroke="{colour}" stroke-width="1.6"/>'


def _apart(one: Box, other: Box) -> bool:
    return one[2] < other[0] or other[2] < one[0] or one[3] < other[1] or other[3] < one[1]


def _round(value: float) -> float:
    """Without what binary fractions add to a tick."""
    return float(f"{value:.6g}")
