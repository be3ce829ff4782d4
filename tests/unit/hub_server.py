"""A stand-in for the Hub on loopback: the calls that up- and downloads make, kept in a folder per repository.

    POST /api/repos/create, /api/validate-yaml, /api/models/REPO/preupload/main, /api/models/REPO/commit/main
    POST /REPO.git/info/lfs/objects/batch, then PUT of each large file
    GET /api/models/REPO/revision/main, /api/models/REPO/tree/COMMIT, /REPO/resolve/main/FILE or .../COMMIT/FILE

Anything else is answered 404 and remembered in ``unknown``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Hub(ThreadingHTTPServer):
    """Repositories below ``root``; safetensors are large files, everything else travels within the commit."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.large: dict[str, bytes] = {}
        self.tokens: set[str | None] = set()
        self.messages: list[str] = []
        self.unknown: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def answer(self, value: Any = None, code: int = 200, body: bytes | None = None, **headers: str) -> None:
        data = json.dumps(value).encode() if body is None else body
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, data = self.path.partition("?")[0], self.body()
        self.server.tokens.add(self.headers.get("Authorization"))
        repo = "/".join(path.removeprefix("/api/models/").split("/")[:2])
        if path == "/api/repos/create":
            wanted = json.loads(data)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            (self.server.root / name).mkdir(parents=True, exist_ok=True)
            self.answer({"url": f"{self.server.endpoint}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = json.loads(data)["files"]
            mode = {True: "lfs", False: "regular"}
            self.answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": mode[file["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                        }
                        for file in files
                    ]
                }
            )
        elif path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**wanted, "actions": {"upload": {"href": f"{self.server.endpoint}/large/{wanted['oid']}"}}}
                for wanted in json.loads(data)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif path.endswith("/commit/main"):
            self.commit(repo, [json.loads(line) for line in data.splitlines()])
        else:
            self.unheard_of()

    def commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.messages.append(value["summary"])
                continue
            target = self.server.root / repo / value["path"]
            target.parent.mkdir(parents=True, exist_ok=True)
            large = line["key"] == "lfsFile"
            target.write_bytes(self.server.large[value["oid"]] if large else base64.b64decode(value["content"]))
        url = f"{self.server.endpoint}/{repo}/commit/{commit_of(repo)}"
        self.answer({"success": True, "commitUrl": url, "commitOid": commit_of(repo)})

    def do_PUT(self) -> None:
        data = self.body()
        digest = hashlib.sha256(data).hexdigest()
        if self.path != f"/large/{digest}":
            self.answer({"error": "not what was announced"}, 400)
            return
        self.server.large[digest] = data
        self.answer({})

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            owner, own_name, asked, *_ = path.removeprefix("/api/models/").split("/")
            self.about(f"{owner}/{own_name}", asked)
            return
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        file = self.server.root / repo / name
        if not name or revision not in ("main", commit_of(repo)):
            self.unheard_of()
        elif not file.is_file():
            self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        else:
            data = file.read_bytes()
            self.answer(body=data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=commit_of(repo))

    do_HEAD = do_GET  # noqa: N815

    def about(self, repo: str, asked: str) -> None:
        """A repository's commit, or the list of its files."""
        folder = self.server.root / repo
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        if not files:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif asked == "revision":
            self.answer({"id": repo, "sha": commit_of(repo), "siblings": []})
        elif asked == "tree":
            names = [file.relative_to(folder).as_posix() for file in files]
            oids = [hashlib.sha1(file.read_bytes()).hexdigest() for file in files]
            sizes = [file.stat().st_size for file in files]
            entries = zip(names, oids, sizes, strict=True)
            self.answer([{"type": "file", "path": name, "oid": oid, "size": size} for name, oid, size in entries])
        else:
            self.unheard_of()

    def unheard_of(self) -> None:
        self.server.unknown.append(f"{self.command} {self.path}")
        self.answer({"error": "no such call"}, 404)


def commit_of(repo: str) -> str:
    """There is one commit in a repository, always the same."""
    return hashlib.sha1(repo.encode()).hexdigest()


@contextmanager
def hub(root: Path) -> Iterator[Hub]:
    """A running stand-in."""
    server = Hub(root)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
