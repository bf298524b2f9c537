"""The record of a run: which runs may be averaged, and files that are read by people."""

import json
from pathlib import Path
from typing import Any

import pytest

from vix.training.callbacks.record import settings_id
from vix.training.files import read_json, write_json

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "ema": 0.999,
    "runs": "runs",
    "model": {"net": {"class_path": "vix.ViP", "init_args": {"dim": 8}}, "label_smoothing": 0.1},
    "data": {"class_path": "datamodules.Digits", "init_args": {"seed": 0, "root": "data", "fraction": 1.0}},
    "trainer": {"max_epochs": 2, "logger": None},
}


def changed(group: str, key: str, value: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(json.dumps(CONFIG))
    arguments = config[group]["init_args"] if group == "data" else config[group]
    arguments[key] = value
    return config


@pytest.mark.parametrize(
    "config",
    [
        CONFIG | {"seed_everything": 1},
        CONFIG | {"runs": "elsewhere"},
        changed("data", "seed", 1),
        changed("data", "root", "elsewhere"),
        changed("trainer", "logger", False),
    ],
)
def test_runs_that_differ_in_seed_and_places_alone_may_be_averaged(config: dict[str, Any]) -> None:
    assert settings_id(config) == settings_id(CONFIG)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG | {"ema": None},
        changed("data", "fraction", 0.5),
        changed("trainer", "max_epochs", 3),
        changed("model", "label_smoothing", 0.0),
    ],
)
def test_runs_of_other_settings_may_not(config: dict[str, Any]) -> None:
    assert settings_id(config) != settings_id(CONFIG)


def test_json_has_a_line_for_each_list_of_numbers_and_comes_back_as_it_was(tmp_path: Path) -> None:
    content = {"a": [1, 2, 3], "b": [[1, 2], [3, 4]], "c": {"d": None, "e\u00e9": [], "f": {}}, "g": ["x, [y]"]}
    write_json(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
    assert "\n    [1, 2],\n    [3, 4]\n" in (tmp_path / "file.json").read_text()
    assert '"a": [1, 2, 3],\n' in (tmp_path / "file.json").read_text()
