"""A hub in this process: it answers what a download asks for, and fails where it is told to."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class StandIn(ThreadingHTTPServer):
    """One repository, owner/name, with `files`: path -> bytes.

    wrong_hash: files for which it tells another SHA-256. cut: bytes after which the next answer breaks off.
    gated: whether files are refused. asked: what came, as (method, path, Range).
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.wrong_hash = {}, [], set()
        self.cut, self.gated = None, False

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sha256(self, path):
        return hashlib.sha256(self.files[path] + (b"x" if path in self.wrong_hash else b"")).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if path == "/api/models/owner/name/revision/main":
            siblings = [
                {
                    "rfilename": name,
                    "size": len(data),
                    "blobId": "0" * 40,
                    "lfs": {"sha256": self.server.sha256(name), "size": len(data), "pointerSize": 1},
                }
                for name, data in self.server.files.items()
            ]
            return self.send(
                200, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
            )
        for revision in ("main", COMMIT):
            name = path.removeprefix(f"/owner/name/resolve/{revision}/")
            if name in self.server.files:
                if self.server.gated:
                    return self.send(403, b"", {"X-Error-Code": "GatedRepo"})
                return self.send_file(name, with_body)
        self.send(404, b"", {"X-Error-Code": "RepoNotFound"})

    def send_file(self, name, with_body):
        data, first = self.server.files[name], 0
        if asked := self.headers.get("Range"):
            first = int(asked.removeprefix("bytes=").split("-")[0])
        digest = self.server.sha256(name)
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        cut, self.server.cut = (self.server.cut, None) if with_body else (None, self.server.cut)
        self.send(206 if asked else 200, data[first:], headers, with_body, cut)

    def send(self, status, body, headers=None, with_body=True, cut=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body and self.command != "HEAD":
            self.wfile.write(body[:cut])
            self.close_connection = cut is not None


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StandIn() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
