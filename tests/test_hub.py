"""A net as a folder of the Hub: whole, without network, with its numbers, and nothing in it is executed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import main
import vix
from tests.nets import images, tiny
from tests.training.standin import fit, net
from vix.hub import Pretrained
from vix.training import ImageClassifier
from vix.training.files import read_json, write_json

ABOUT: dict[str, Any] = {
    "class_names": ["a", "b", "c", "d", "e"],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "data": "Digits",
    "results": {"best": {"val/top1": 0.875}, "test": {"test/top1": 0.8125}, "epochs": 7, "commit": "abc123"},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.mark.parametrize("name", vix.SYSTEMS)
def test_a_folder_gives_the_same_net_again(name: str, tmp_path: Path) -> None:
    saved = tiny(vix.SYSTEMS[name]).eval()
    Pretrained(saved, ABOUT).save_pretrained(tmp_path / "net")
    loaded = Pretrained.from_pretrained(tmp_path / "net")
    assert type(loaded.net) is type(saved)
    assert loaded.about == ABOUT
    torch.testing.assert_close(loaded(images(saved)), saved(images(saved)), rtol=0, atol=0)


def test_a_net_whose_attention_was_swapped_is_no_exception(tmp_path: Path) -> None:
    saved = vix.swap_attention(tiny(vix.ViT), vix.Performer).eval()
    Pretrained(saved).save_pretrained(tmp_path)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(Pretrained.from_pretrained(tmp_path)(x), saved(x), rtol=0, atol=0)


def test_the_card_has_the_numbers_for_people_and_for_the_hub(tmp_path: Path) -> None:
    Pretrained(tiny(vix.ViP), ABOUT).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "| accuracy, test | 81.25 % |" in card.text
    assert "| epochs | 7 |" in card.text
    measured = {each.dataset_split: each.metric_value for each in card.data.eval_results or []}
    assert measured == {"validation": 0.875, "test": 0.8125}
    assert card.data.pipeline_tag == "image-classification"


def test_what_a_stranger_wrote_into_a_folder_is_not_imported(tmp_path: Path) -> None:
    Pretrained(tiny(vix.ViP)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"]["class_path"] = "os.system"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"class path 'os.system' is outside vix\."):
        Pretrained.from_pretrained(tmp_path)


def test_what_is_broken_is_said_in_one_line(tmp_path: Path) -> None:
    Pretrained(tiny(vix.ViP)).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        Pretrained.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)
    config = json.loads((tmp_path / "config.json").read_text())
    config["spec"]["init_args"]["dim"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(ValueError, match=r"does not fit the net of config\.json"):
        Pretrained.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="describes no net of vix"):
        Pretrained.from_pretrained(tmp_path)


def test_a_net_without_a_spec_and_facts_without_a_name_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no spec"):
        Pretrained(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"about takes class_names, .*, got colour"):
        Pretrained(tiny(vix.ViP), {"colour": "red"})


def test_the_command_writes_a_run_with_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = ImageClassifier(net())
    _, run = fit(module, tmp_path, max_epochs=1)
    write_json(run.results, {**read_json(run.results), "best": {"val/top1": 0.5}, "epochs": 1})
    (run.folder / "config.yaml").write_text("{}\n")
    out = tmp_path / "net"
    assert main.main(["save-pretrained", "--ckpt_path", str(run.folder), "--out", str(out)]) == 0
    loaded = Pretrained.from_pretrained(out)
    assert loaded.about["class_names"] == ["dark", "grey", "bright"]
    assert "| accuracy, validation | 50.00 % |" in (out / "README.md").read_text()
    x = torch.randn(2, 1, 4, 4)
    best = ImageClassifier.load_from_checkpoint(run.best).eval()
    torch.testing.assert_close(loaded(x), best(x))
    capsys.readouterr()
    assert main.main(["save-pretrained", "--ckpt_path", str(run.folder), "--out", str(out)]) == 2
    assert "is there and not empty" in capsys.readouterr().err
