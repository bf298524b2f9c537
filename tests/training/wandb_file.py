"""Reads the records of a `.wandb` file: W&B has no public reader for what an offline run leaves.

The file is a LevelDB log: blocks of 32 KB, in them chunks with a header of 7 bytes (checksum 4, length 2, kind 1); a
record that does not fit a block is cut into chunks of the kinds first, middle, last. Seven bytes of W&B's own come
first.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
HEADER = 7
FULL, FIRST, LAST = 1, 2, 4


def records(path: Path) -> Iterator[Record]:
    """All records, in order, once W&B's process has ended: it writes for some milliseconds after a run's end."""
    wandb.teardown()
    data, place, parts = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        chunk = data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        parts = chunk if kind in (FULL, FIRST) else parts + chunk
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(parts)
            yield record


def config(path: Path) -> dict[str, Any]:
    """The run's configuration, nested as W&B shows it."""
    found: dict[str, Any] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        updates = record.run.config.update if kind == "run" else record.config.update if kind == "config" else []
        for update in updates:
            keys = list(update.nested_key) or [update.key]
            place = found
            for key in keys[:-1]:
                place = place.setdefault(key, {})
            place[keys[-1]] = json.loads(update.value_json)
    return found


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged, one mapping a call."""
    calls = (each.history.item for each in records(path) if each.WhichOneof("record_type") == "history")
    return [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items} for items in calls]


def metrics(path: Path) -> dict[str, str]:
    """Which metric is drawn over which, by name or pattern."""
    defined = [record.metric for record in records(path) if record.WhichOneof("record_type") == "metric"]
    return {metric.name or metric.glob_name: metric.step_metric for metric in defined}


def summary(path: Path) -> dict[str, Any]:
    """The run's summary: the last value of everything, and what was set on purpose."""
    found: dict[str, Any] = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            for update in record.summary.update:
                found["/".join(update.nested_key) or update.key] = json.loads(update.value_json)
    return found


def artifacts(path: Path) -> list[Any]:
    """The artifacts that the run keeps."""
    asked = [each.request for each in records(path) if each.WhichOneof("record_type") == "request"]
    kept = [each.artifact for each in records(path) if each.WhichOneof("record_type") == "artifact"]
    return kept + [each.log_artifact.artifact for each in asked if each.WhichOneof("request_type") == "log_artifact"]


def run(path: Path) -> Any:
    """The run as it was started: id, name, group, tags."""
    return next(record.run for record in records(path) if record.WhichOneof("record_type") == "run")
