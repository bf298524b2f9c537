"""An explanation as numbers: a table for the terminal, JSON for programs."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vix.explain import Explanation, Layer


def likeliest(found: Explanation, names: Sequence[str], count: int = 5) -> list[tuple[str, float]]:
    """Names the likeliest classes with their probabilities, the likeliest first."""
    best, classes = found.logits.double().softmax(dim=-1).topk(min(count, len(found.logits)))
    return [(names[each], probability) for each, probability in zip(classes.tolist(), best.tolist(), strict=True)]


def mean(layer: Layer, name: str) -> float | None:
    """Returns a number's mean over the heads; None where the mechanism has no such number."""
    return layer.statistics[name].mean().item() if name in layer.statistics else None


def as_text(found: Explanation, title: str, names: Sequence[str]) -> str:
    """Sets the means over heads as a table, one layer a line."""
    (best, probability), *_ = likeliest(found, names)
    lines = [
        f"{title}: {best} {probability:.1%}",
        f"{'layer':<30}{'entropy':>16}{'distance px':>16}{'rank':>8}{'error':>8}",
    ]
    for number, layer in enumerate(found.layers, start=1):
        mixing = layer.mixing
        error = mean(layer, "matrix_error")
        tokens = f"{mixing.queries.count}" + (f" of {mixing.keys.count}" if mixing.queries != mixing.keys else "")
        name = f"{number} {mixing.kind}, {tokens}"
        lines.append(
            f"{name:<30}"
            f"{mean(layer, 'entropy'):>8.2f} of {layer.uniform['entropy']:4.2f}"
            f"{mean(layer, 'distance'):>8.1f} of {layer.uniform['distance']:4.1f}"
            f"{mean(layer, 'effective_rank'):>8.1f}" + (f"{error:>8.2f}" if error is not None else f"{'':>8}")
        )
    return "\n".join(lines)


def as_json(found: Explanation, names: Sequence[str], checkpoint: Path) -> str:
    """Writes everything but the matrices: classes, rollout, and for each layer and head the map and the numbers."""
    layers: list[dict[str, Any]] = [
        {
            "name": layer.mixing.name,
            "mechanism": layer.mixing.kind,
            "queries": {"grid": layer.mixing.queries.grid, "class_tokens": layer.mixing.queries.prefix},
            "keys": {"grid": layer.mixing.keys.grid, "class_tokens": layer.mixing.keys.prefix},
            "uniform": layer.uniform,
            "heads": [
                {
                    "name": head,
                    **{name: values[place].item() for name, values in layer.statistics.items()},
                    "map": _rounded(layer.maps[place].tolist()),
                }
                for place, head in enumerate(layer.mixing.heads)
            ],
        }
        for layer in found.layers
    ]
    content = {
        "checkpoint": str(checkpoint),
        "image_size": found.image_size,
        "classes": [{"name": name, "probability": probability} for name, probability in likeliest(found, names)],
        "rollout": _rounded(found.rollout.tolist()),
        "rollout_on_class_token": found.on_class_token,
        "layers": layers,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in rows]
