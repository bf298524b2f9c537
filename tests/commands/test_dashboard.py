"""`dashboard`: a workspace made through W&B's own package, on a server of our own, and the list of its panels."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import wandb

import main
from vix.commands.dashboard import PANELS, STEP, as_table

ROOT = Path(main.__file__).parent


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


class Server(BaseHTTPRequestHandler):
    """Answers as far as the making of a view needs it, and keeps what it was asked."""

    asked: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body)
        viewer = {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}
        view = {"view": {"id": "v", "name": "nw-abc-v"}, "inserted": True}
        answer = json.dumps({"data": {"viewer": viewer, "upsertView": view}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments: Any) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    Server.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}", Server.asked
        listening.shutdown()


@pytest.mark.slow
# W&B's package is written for pydantic's first version
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_with_a_key_and_a_server_the_workspace_is_made(
    server: tuple[str, list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url, asked = server
    for name, value in {"WANDB_BASE_URL": url, "WANDB_API_KEY": "k" * 40}.items():
        monkeypatch.setenv(name, value)
    # W&B reads its address once a process
    wandb.teardown()
    assert main.main(["dashboard", "--project", "digits", "--entity", "me"]) == 0
    wandb.teardown()
    (made,) = [request["variables"] for request in asked if "upsertView" in request["query"]]
    assert (made["entityName"], made["projectName"], made["displayName"]) == ("me", "digits", "ViX")
    spec = json.dumps(json.loads(made["spec"]))
    for panel in PANELS:
        assert panel.kind == "table" or panel.title in spec
        assert all(name in spec for name in panel.y)
    assert spec.count(STEP) >= sum(panel.kind == "lines" for panel in PANELS)
    assert "/me/digits" in capsys.readouterr().out


def test_without_a_key_the_panels_are_listed_and_it_is_said_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["dashboard"]) == 1
    captured = capsys.readouterr()
    assert "no key" in captured.err
    assert as_table() in captured.out


def test_the_documented_panels_are_those_that_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["dashboard", "--list"]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "docs" / "wandb.md").read_text(encoding="utf-8")
