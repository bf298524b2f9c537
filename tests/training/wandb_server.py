"""A server on the loopback that speaks as much of W&B's protocol as a run needs, and fails on demand."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Takes runs.

    `fault` may be changed at any time: none, `unauthorized` (all is answered by 401), `forbidden` (numbers are answered
    by 403), `failing` (all is answered by 500), `crashing` (by something that W&B's own process does not survive).
    """

    def __init__(self) -> None:
        self.fault = ""
        self.history: list[dict[str, Any]] = []
        self.requests = 0
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _Server(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def die(self) -> None:
        """Closes the door: from now on connections are refused."""
        # connections that are open get this as their last answer
        self.fault = "failing"
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def answer(self, path: str, body: str) -> tuple[int, Any]:
        """Status and content for a request."""
        self.requests += 1
        status = {"unauthorized": 401, "failing": 500}.get(self.fault, 200)
        if status != 200:
            return status, {"errors": [{"message": "user is not logged in"}]}
        if path.endswith("/file_stream"):
            if self.fault == "forbidden":
                return 403, {"error": "no"}
            files = json.loads(body).get("files") or {}
            lines = (files.get("wandb-history.jsonl") or {}).get("content", [])
            self.history += map(json.loads, lines)
            return 200, {"exitcode": None, "limits": {}}
        if path != "/graphql":
            return 200, {}
        query, variables = json.loads(body)["query"], json.loads(body).get("variables") or {}
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "somebody"}}
            bucket = {"id": "UnVu", "name": variables["name"], "displayName": variables.get("displayName")}
            bucket |= {"description": None, "config": "{}", "sweepName": None, "historyLineCount": 0}
            return 200, {"data": {"upsertBucket": {"bucket": {**bucket, "project": project}, "inserted": True}}}
        if "RunResumeStatus" in query:
            model = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "somebody"}}
            return 200, {"data": {"model": {**model, "bucket": None}}}
        if "createRunFiles" in query and self.fault != "crashing":
            files = [{"name": name, "uploadUrl": f"{self.address}/files/{name}"} for name in variables["files"]]
            return 200, {"data": {"createRunFiles": {"runID": "UnVu", "uploadHeaders": [], "files": files}}}
        return 200, {"data": {}}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that hangs up is what is tested here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: WandbServer

    def _do(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, content = self.owner.answer(self.path, body.decode(errors="replace"))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _do  # noqa: N815  # names of http.server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Says nothing."""


@contextmanager
def serving() -> Iterator[WandbServer]:
    """A server that ends with the block, dead or alive."""
    server = WandbServer()
    try:
        yield server
    finally:
        server.die()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
