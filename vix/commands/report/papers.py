"""Published numbers: one YAML a source, each with the protocol that its numbers were reached by."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Published:
    """One published row; None stands for what the source does not say.

    Args:
        system: As the source calls it.
        experiment: Name of our YAML for it.
        top1: Accuracy in percent.
        top5: Accuracy in percent.
        epoch: The epoch of these scores.
        epochs: Epochs in the source's log.
        batch_size: Images of a step.
        parameters: As the source counts them.
        seconds_per_epoch: On the source's hardware.
        remark: What else is to be known.
    """

    system: str
    experiment: str
    top1: float | None = None
    top5: float | None = None
    epoch: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    parameters: int | None = None
    seconds_per_epoch: float | None = None
    remark: str = ""


@dataclass(frozen=True)
class Paper:
    """One source on one data set.

    Args:
        title: Of the source.
        source: Where it is to be found.
        data: The data set's class in `datamodules`.
        protocol: How the numbers were reached, in words.
        rows: The numbers.
    """

    title: str
    source: str
    data: str
    protocol: str
    rows: tuple[Published, ...]


def read_papers(folder: Path) -> list[Paper]:
    """Reads every YAML of a folder.

    Raises:
        ValueError: If there is no such folder, or a file is not as it should be.
    """
    if not folder.is_dir():
        raise ValueError(f"--papers {folder}: no such folder; leave the published numbers out with --no-papers")
    return [read_paper(path) for path in sorted(folder.glob("*.yaml"))]


def read_paper(path: Path) -> Paper:
    """Reads one file.

    Raises:
        ValueError: If it is not as it should be; the message names the file and the place.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    names = [each.name for each in fields(Paper)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise ValueError(f"{path}: expected a mapping with exactly {', '.join(names)}")
    return Paper(**{**content, "rows": tuple(_row(path, row) for row in content["rows"])})


def _row(path: Path, row: Any) -> Published:
    try:
        made = Published(**row)
    except TypeError as error:
        raise ValueError(f"{path}: {row}: {error}") from error
    for name in ("top1", "top5"):
        value = getattr(made, name)
        if value is not None and not 0 <= value <= 100:
            raise ValueError(f"{path}: {made.system}: {name} must be a percentage from 0 to 100, got {value}")
    return made
