"""Predictions as text: one row a file."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

Row = tuple[str, list[int], list[float]]
"""Name of a file, its likeliest classes, their probabilities."""


def as_csv(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Sets rows as CSV: path, class_1, probability_1, class_2 and so on.

    Args:
        rows: The predictions.
        names: One a class.
    """
    count = max((len(classes) for _, classes, _ in rows), default=0)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["path", *(f"{what}_{place}" for place in range(1, count + 1) for what in ("class", "probability"))]
    )
    for path, classes, probabilities in rows:
        pairs = zip(classes, probabilities, strict=True)
        writer.writerow([path, *(cell for each, p in pairs for cell in (names[each], f"{p:.6f}"))])
    return text.getvalue()


def as_json(rows: Sequence[Row], names: Sequence[str], failures: Mapping[str, str], checkpoint: Path) -> str:
    """Sets rows as JSON, one image a line, with the files that could not be read.

    Args:
        rows: The predictions.
        names: One a class.
        failures: By name of a file, why it could not be read.
        checkpoint: What predicted.
    """
    images = [
        json.dumps(
            {
                "path": path,
                "top": [
                    {"class": names[each], "probability": round(p, 6)}
                    for each, p in zip(classes, probabilities, strict=True)
                ],
            },
            ensure_ascii=False,
        )
        for path, classes, probabilities in rows
    ]
    broken = [json.dumps({"path": path, "reason": why}, ensure_ascii=False) for path, why in failures.items()]
    return (
        f'{{\n"checkpoint": {json.dumps(str(checkpoint), ensure_ascii=False)},\n"images": {_lines(images)},\n'
        f'"failures": {_lines(broken)}\n}}\n'
    )


def _lines(items: Sequence[str]) -> str:
    return "[\n" + ",\n".join(items) + "\n]" if items else "[]"
