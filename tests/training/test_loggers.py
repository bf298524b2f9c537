"""Numbers on disk: metrics.csv row by row, and the mode of W&B."""

import csv
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vix.training import loggers
from vix.training.loggers import MetricsTable, wandb_mode
from vix.training.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "vip" / "1")


def rows(run: Run) -> list[dict[str, str]]:
    with (run.folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_logged_at_one_step_is_one_row_and_all_rows_have_all_columns(run: Run) -> None:
    table = MetricsTable(run)
    table.log_metrics({"lr": 0.1, "epoch": 0}, step=4)
    table.log_metrics({"val/top1": 0.5, "epoch": 0}, step=9)
    table.log_metrics({"train/loss": 2.0, "epoch": 0}, step=9)
    table.log_metrics({"lr": 0.05, "epoch": 1}, step=14)
    table.finalize("success")
    assert rows(run) == [
        {"epoch": "1", "step": "5", "lr": "0.1", "train/loss": "", "val/top1": ""},
        {"epoch": "1", "step": "10", "lr": "", "train/loss": "2", "val/top1": "0.5"},
        {"epoch": "2", "step": "15", "lr": "0.05", "train/loss": "", "val/top1": ""},
    ]


def test_what_led_to_a_checkpoint_is_on_disk_with_it(run: Run) -> None:
    table = MetricsTable(run)
    table.log_metrics({"val/top1": 0.5}, step=9)
    table.after_save_checkpoint(None)
    assert len(rows(run)) == 1


def test_a_resumed_table_drops_what_is_done_again_and_goes_on(run: Run) -> None:
    table = MetricsTable(run)
    for step in (4, 9, 14):
        table.log_metrics({"lr": step}, step=step)
    table.finalize("failed")
    again = MetricsTable(run)
    again.resume(10)
    again.log_metrics({"lr": 1.0, "train/loss": 3.0}, step=14)
    again.finalize("success")
    assert [(row["step"], row["lr"], row["train/loss"]) for row in rows(run)] == [
        ("5", "4", ""),
        ("10", "9", ""),
        ("15", "1", "3"),
    ]


def test_nothing_logged_leaves_no_file(run: Run) -> None:
    MetricsTable(run).finalize("success")
    assert not run.folder.exists()


@pytest.fixture
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.usefixtures("_no_key")
class TestMode:
    def test_without_a_key_it_is_offline_and_says_why(self) -> None:
        assert wandb_mode("auto") == ("offline", "no key; `wandb login` stores one")
        assert wandb_mode("online")[0] == "offline"

    @pytest.mark.parametrize("place", ["environment", "netrc", "named netrc"])
    def test_with_a_key_and_a_server_it_is_online(
        self, place: str, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("WANDB_BASE_URL", server)
        if place == "environment":
            monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        else:
            path = tmp_path / (".netrc" if place == "netrc" else "elsewhere")
            path.write_text(f"machine 127.0.0.1 login user password {'k' * 40}\n")
            path.chmod(0o600)
            if place == "named netrc":
                monkeypatch.setenv("NETRC", str(path))
        assert wandb_mode("auto") == ("online", "")

    def test_with_a_key_but_no_server_it_is_offline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        assert wandb_mode("auto") == ("offline", f"http://127.0.0.1:{port} does not answer")

    def test_a_broken_netrc_is_said_and_no_crash(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / ".netrc").write_text("nonsense")
        assert wandb_mode("auto")[0] == "offline"
        assert ".netrc: not readable" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("asked", "variable", "mode"),
        [
            ("auto", "offline", "offline"),
            ("auto", "dryrun", "offline"),
            ("auto", "disabled", "disabled"),
            ("offline", "online", "offline"),
            ("disabled", "", "disabled"),
        ],
    )
    def test_what_is_asked_for_comes_first_then_the_variable(
        self, asked: Any, variable: str, mode: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WANDB_MODE", variable)
        monkeypatch.setattr(loggers, "_has_key", lambda host: pytest.fail("nobody needs a key here"))
        assert wandb_mode(asked)[0] == mode
