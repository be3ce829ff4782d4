"""A server on loopback that answers chat completions as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Behaviour = Callable[["Request"], None]


@dataclass
class Request:
    """One request, and the means to answer it."""

    handler: BaseHTTPRequestHandler
    path: str
    body: dict[str, Any]
    index: int  # how many came before
    release: threading.Event  # set when the server goes

    @property
    def prompt(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def schema(self) -> dict[str, Any]:
        """The schema that stands in the prompt."""
        line = next(line for line in self.prompt.splitlines() if line.startswith('{"type":"object"'))
        return json.loads(line)

    def raw(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.handler.send_header(name, value)
        self.handler.send_header("Content-Length", str(len(data)))
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def error(self, status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        self.raw(json.dumps({"error": {"message": message, **more}}).encode(), status, headers)

    def say(self, content: str | None, finish_reason: str = "stop", usage: bool = True, **message: Any) -> None:
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "the-model",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": finish_reason,
                    "message": {"role": "assistant", "content": content, **message},
                }
            ],
        }
        if usage:
            body["usage"] = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        self.raw(json.dumps(body).encode())

    def candidates(self, shift: int = 0) -> list[dict[str, int]]:
        """As many right candidates as were asked for, different ones in every request."""
        items = self.schema["properties"]["candidates"]
        menus = {name: values["enum"] for name, values in items["items"]["properties"].items()}
        chance = random.Random(f"{self.index} {shift}")
        return [{name: chance.choice(menu) for name, menu in menus.items()} for _ in range(items["minItems"])]

    def advise(self) -> None:
        """A right reply."""
        self.say(json.dumps({"candidates": self.candidates()}))


@dataclass
class Server:
    """Where it is, and what it has been asked."""

    base_url: str
    behaviour: Behaviour
    requests: list[Request] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    num_before: int = 0  # requests that count as made already


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[Server]:
    """Answer POSTs by ``behaviour``, on a port of the system's choice."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self, self.path, body, server.num_before + len(server.requests), release)
            server.requests.append(request)
            server.headers.append(str(self.headers))
            server.behaviour(request)

        def do_GET(self) -> None:
            listed = {"object": "list", "data": [{"id": name, "object": "model"} for name in ("alpha", "beta")]}
            Request(self, self.path, {}, 0, release).raw(json.dumps(listed).encode())

        def log_message(self, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):  # the client gave up, as it should
                super().handle()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1", behaviour)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        release.set()
        http.shutdown()
        http.server_close()
