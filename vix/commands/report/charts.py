"""Charts as SVG text, without a library: curves by epoch, and scores against cost with their Pareto front."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from vix.commands.report.drawing import LETTER, STYLE, Frame, Labels, mark
from vix.commands.report.runs import Row

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
DASH = "5 3"
# Above which there is a chart for each body.
MOST_CURVES = 8
Curve = tuple[Row, list[tuple[int, float]]]
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


def curves(rows: Sequence[Row]) -> str:
    """Validation top-1 by epoch, mean over seeds: one chart, or one a body of many rows; empty without epochs."""
    drawn = [(row, points) for row in rows if len(points := list(row.curve.items())) > 1]
    if not drawn:
        return ""
    bodies = [body for body in MARKS if any(kind(row)[1] == body for row, _ in drawn)]
    if len(drawn) <= MOST_CURVES or len(bodies) == 1:
        return _curves(drawn, drawn, "Learning curves", Frame(right=_room(row.label for row, _ in drawn)))
    frame = Frame(width=500, height=310, top=30, right=_room(row.label for row, _ in drawn))
    charts = [
        _curves(drawn, [each for each in drawn if kind(each[0])[1] == body], f"Learning curves, {body}", frame)
        for body in bodies
    ]
    return f'<div class="panels">{"".join(charts)}</div>'


def _curves(drawn: Sequence[Curve], named: Sequence[Curve], title: str, frame: Frame) -> str:
    """Some curves in colour and by name, all others faint behind them."""
    x = frame.across(1, max(epoch for _, points in drawn for epoch, _ in points))
    y = frame.percentages(value for _, points in drawn for _, value in points)
    parts = [frame.grid(x, y, "epoch", "validation top-1 %")]
    if len(named) < len(drawn):
        parts.append(f'<text class="title" x="{frame.left}" y="18">{escape(title.rpartition(" ")[2])}</text>')
    ends = []

    def path(points: Sequence[tuple[int, float]]) -> str:
        return " ".join(f"{x(epoch):.1f},{y(value * 100):.1f}" for epoch, value in points)

    parts += [f'<polyline class="behind" points="{path(each[1])}"/>' for each in drawn if each not in named]
    for row, points in sorted(named, key=lambda each: each[1][-1][1]):
        colour, dash = COLOURS[kind(row)[0]], DASH if _light(row) else ""
        told = f"{row.label}: {points[-1][1]:.2%} after epoch {points[-1][0]}"
        parts.append(
            f'<g class="series"><title>{escape(told)}</title>'
            f'<polyline points="{path(points)}" fill="none" stroke="{colour}" stroke-dasharray="{dash}"/></g>'
        )
        ends.append((y(points[-1][1] * 100), row.label, colour))
    parts.append(Labels(frame).column(frame.width - frame.right + 2, ends))
    return frame.svg(title, parts)


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
    frame, costs = Frame(), [each[0] for each in points]
    x = frame.across(min(costs) / 1.3, max(costs) * 1.5, "log")
    y = frame.percentages(each[1] for each in points)
    there = [(x(value), y(score * 100)) for value, score, _ in points]
    tested = all(row.values("test/top1") for _, _, row in points)
    parts, labels = (
        [frame.grid(x, y, title, f"{'test' if tested else 'test or best validation'} top-1 %")],
        Labels(frame, there),
    )
    best = front([(each, score) for each, score, _ in points])
    path = " ".join(f"{there[place][0]:.1f},{there[place][1]:.1f}" for place in best)
    parts.append(f'<polyline class="front" points="{path}"/>')
    # the front's labels are placed first, so that they get the room
    for place in [*best, *(place for place in range(len(points)) if place not in best)]:
        (value, score, row), (a, b) = points[place], there[place]
        mixing, body = kind(row)
        spread = row.deviation("test/top1" if row.values("test/top1") else "best/top1") or 0.0
        low, high = (y(max(y.low, min(y.high, (score + sign * spread) * 100))) for sign in (-1, 1))
        told = f"{row.label}: {score:.2%} ± {spread * 100:.2f}, {value:,.3g} {title}"
        parts.append(
            f'<g class="series"><title>{escape(told)}</title>'
            f'<path class="spread" d="M{a:.1f} {low:.1f}V{high:.1f}" stroke="{COLOURS[mixing]}"/>'
            f"{mark(body, a, b, COLOURS[mixing], hollow=_light(row))}"
            f"{labels.beside(a, b, row.label, COLOURS[mixing])}</g>"
        )
    return frame.svg(f"Accuracy against {title}", parts)


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
        rows: A row for each label, which chooses colour and mark.
    """
    drawn = {label: sorted(found.items()) for label, found in table.items() if len(found) > 1}
    if not drawn:
        return ""
    frame = Frame(right=_room(drawn))
    x = frame.across(min(each[0][0] for each in drawn.values()) * 100, 100, "log")
    y = frame.percentages(value for points in drawn.values() for _, value in points)
    parts = [frame.grid(x, y, "% of the training images", "test top-1 %")]
    ends = []
    for label, points in sorted(drawn.items(), key=lambda each: -each[1][-1][1]):
        mixing, body = kind(rows[label])
        there = [(x(share * 100), y(value * 100)) for share, value in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there)
        parts.append(
            f'<g class="series"><title>{escape(label)}</title><polyline points="{path}" fill="none" '
            f'stroke="{COLOURS[mixing]}" stroke-dasharray="{DASH if _light(rows[label]) else ""}"/>'
            f"{''.join(mark(body, a, b, COLOURS[mixing], hollow=_light(rows[label])) for a, b in there)}</g>"
        )
        ends.append((there[-1][1], label, COLOURS[mixing]))
    parts.append(Labels(frame).column(frame.width - frame.right + 6, ends))
    return frame.svg("Accuracy by the amount of data", parts)


def _keys(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What colours and marks say, of those that are there: a mark at (7, 7) and its meaning."""
    kinds = [kind(row) for row in rows]
    colours = [
        (mark("plain", 7, 7, colour, hollow=False), name)
        for name, colour in COLOURS.items()
        if any(name == mixing for mixing, _ in kinds)
    ]
    marks = [(mark(each, 7, 7, "#555", hollow=True), each) for each in MARKS if any(each == body for _, body in kinds)]
    return colours + marks


def legend(rows: Sequence[Row]) -> str:
    """What colours and marks say, for a page."""
    words = [
        f'<span><svg width="14" height="14" aria-hidden="true">{drawn}</svg>{escape(name)}</span>'
        for drawn, name in _keys(rows)
    ]
    words.append("<span>hollow, or dashed: without rotary positions, where there is a choice</span>")
    return f'<p class="legend">{" ".join(words)}</p>'


def picture(rows: Sequence[Row]) -> str:
    """Scores against operations as an SVG file of its own, with its legend; empty where no operations are known."""
    chart = pareto(rows, "flops", "MFLOPs an image", 1e6)
    if not chart:
        return ""
    frame, x, keys = Frame(), float(Frame().left), []
    for drawn, name in _keys([row for row in rows if row.mean("flops")]):
        keys.append(f'<g transform="translate({x:.1f} 5)">{drawn}<text x="17" y="11">{escape(name)}</text></g>')
        x += 34 + LETTER * len(name)
    inside = chart.replace("<svg ", f'<svg y="24" width="{frame.width}" height="{frame.height}" ', 1)
    size = f"{frame.width} {frame.height + 24}"
    font = 'text { font: 11px system-ui, "DejaVu Sans", sans-serif }'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{font}{STYLE}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(keys)}{inside}</svg>\n'
    )


def _light(row: Row) -> bool:
    """Whether a net that has a rotary version is not that one: hollow marks, dashed lines."""
    return kind(row)[1] in ("plain", "hybrid") and bool(row.first.net[0]) and not row.first.net[1].startswith("rope")


def _room(labels: Iterable[str]) -> int:
    """Pixels for a column of names to the right of a chart."""
    return 24 + round(LETTER * max(map(len, labels)))
