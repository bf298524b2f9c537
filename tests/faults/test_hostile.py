"""Files of strangers given to the commands: nothing in them runs, is imported, or becomes markup."""

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import main
from tests.test_main import EXPERIMENTS, QUICK, small
from tests.training.test_checkpoint import Bomb
from vix.training.runs import Run

COMMANDS = ["fit", "validate", "test", "predict"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of ours."""
    runs = tmp_path_factory.mktemp("runs")
    quick = [*QUICK, "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1", "--wandb.mode=disabled"]
    assert main.main(["fit", *small(), *quick, f"--runs={runs}"]) == 0
    (folder,) = runs.glob("*/*")
    return Run(folder).last


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "current").mkdir()
    monkeypatch.chdir(tmp_path / "current")
    monkeypatch.setenv("WANDB_MODE", "disabled")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    before = sorted(Path().rglob("*"))
    assert main.main(arguments) == 2
    told = capsys.readouterr().err
    assert 1 <= len(told.splitlines()) <= 5
    assert "Traceback" not in told
    assert sorted(Path().rglob("*")) == before
    return told


@pytest.mark.parametrize("place", ["top", "state_dict", "hyper_parameters"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_pickle_bomb_is_refused_by_every_command_and_does_not_go_off(
    command: str, place: str, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content: dict[str, Any] = torch.load(trained, weights_only=True)
    (content if place == "top" else content[place])["bomb"] = Bomb(Path("executed"))
    torch.save(content, "stranger.ckpt")
    # to trust a module is not to trust a pickle
    for trust in ([], ["--trust=builtins,io,os"]):
        assert "refused" in refused([command, "--ckpt_path=stranger.ckpt", *trust], capsys)
    assert not Path("executed").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_class_of_a_stranger_is_imported_on_trust_alone(
    command: str, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("strangers_net.py").write_text("open('executed', 'w').close()\nfrom vix import ViP\nclass Net(ViP): pass\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    content: dict[str, Any] = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["net"]["class_path"] = "strangers_net.Net"
    torch.save(content, "stranger.ckpt")
    assert "--trust strangers_net" in refused([command, "--ckpt_path=stranger.ckpt"], capsys)
    assert "--trust strangers_net" in refused([command, "--ckpt_path=stranger.ckpt", "--trust=strangers"], capsys)
    assert not Path("executed").exists()
    assert "strangers_net" not in sys.modules
    try:
        assert main.main([command, "--ckpt_path=stranger.ckpt", "--trust=strangers_net", "--trainer.max_epochs=1"]) == 0
        assert Path("executed").exists()
    finally:
        sys.modules.pop("strangers_net", None)


class Tags(HTMLParser):
    """Gathers what a browser would take for markup."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        self.attributes |= {name for name, _ in attrs}


def poisoned(value: Any, evil: str) -> Any:
    """A nest in which every text is poisoned, as well as every key that is a name of the user's."""
    if isinstance(value, dict):
        return {key: poisoned(item, evil) for key, item in value.items()}
    if isinstance(value, list):
        return [poisoned(item, evil) for item in value]
    return f"{value}{evil}" if isinstance(value, str) else value


@pytest.mark.parametrize(
    "evil",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "' onmouseover='alert(1)",
        "</title></style></svg><iframe src=javascript:alert(1)>",
        "<!--",
        "&lt;script&gt;",
        "]]><svg onload=alert(1)>",
    ],
)
def test_no_text_of_a_run_becomes_markup(evil: str, trained: Path) -> None:
    results = json.loads(Run(trained.parent.parent).results.read_text(encoding="utf-8"))
    pages = {}
    for name, content in {"plain": results, "evil": poisoned(results, evil)}.items():
        Path(name).mkdir()
        (Path(name) / "results.json").write_text(json.dumps(content), encoding="utf-8")
        papers = papers_with(evil if name == "evil" else "")
        assert main.main(["report", name, f"--out={name}-report", f"--papers={papers}"]) == 0
        pages[name] = (Path(f"{name}-report") / "report.html").read_text(encoding="utf-8")
    plain, page = Tags(), Tags()
    plain.feed(pages["plain"])
    page.feed(pages["evil"])
    assert page.found <= plain.found
    assert page.attributes <= plain.attributes
    assert not {name for name in page.attributes if name.startswith("on")}
    assert pages["evil"].count("<script>") == 1
    assert evil not in pages["evil"]


def papers_with(evil: str) -> Path:
    folder = Path("papers")
    folder.mkdir(exist_ok=True)
    row = {"system": f"ViP{evil}", "experiment": f"vip{evil}", "top1": 50.0, "remark": f"remark{evil}"}
    content = {name: f"{name}{evil}" for name in ("title", "source", "data", "protocol")}
    (folder / "evil.yaml").write_text(json.dumps({**content, "rows": [row]}), encoding="utf-8")
    return folder


def test_the_experiments_of_this_project_name_no_class_that_a_checkpoint_may_not() -> None:
    for path in EXPERIMENTS.rglob("*.yaml"):
        for line in path.read_text(encoding="utf-8").splitlines():
            _, marker, named = line.partition("class_path: ")
            if marker and "pytorch_lightning" not in named:
                assert named.startswith(("vix.", "datamodules.", "torch.optim.")), path
