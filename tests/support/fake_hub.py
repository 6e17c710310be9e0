"""A small Hugging Face hub on the loopback: repositories, commits, branches, tokens and LFS uploads.

It speaks what huggingface_hub speaks with HF_HUB_DISABLE_XET: the REST interface, Git LFS's batch protocol,
and the headers of downloads.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, Self
from urllib.parse import unquote, urlsplit

TOKEN = "hf_loopback_token"
LFS_BYTES = 10_000
"""Larger files go by LFS."""


class Refusal(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(message or code)
        self.status, self.code = status, code


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        parent = self.branches.get(branch, "")
        content = repr((parent, sorted((name, hashlib.sha1(body).digest()) for name, body in files.items())))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = dict(files), sha
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]]:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, "RevisionNotFound")
        return sha, self.commits[sha]


class FakeHub:
    """Serves repositories; a context manager. `broken`: the status it answers everything with."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploaded: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = 0

    def __enter__(self) -> Self:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = 1 << 16

            def log_message(self, *words: object) -> None:
                pass

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length) if length else self._chunks()
                hub.requests.append(f"{self.command} {self.path}")
                path = unquote(urlsplit(self.path).path).strip("/")
                try:
                    if hub.broken:
                        raise Refusal(hub.broken, "")
                    status, headers, content = hub.route(self.command, path, body, dict(self.headers))
                except Refusal as refusal:
                    content = json.dumps({"error": str(refusal)}).encode()
                    status, headers = refusal.status, {"X-Error-Code": refusal.code} if refusal.code else {}
                with suppress(OSError):
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(content)
                    self.wfile.flush()

            def _chunks(self) -> bytes:
                if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                    return b""
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_HEAD = do_POST = do_PUT = answer

        class Listener(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def repository(self, name: str, headers: dict[str, str]) -> Repository:
        repository = self.repositories.get(name)
        signed_in = headers.get("authorization", headers.get("Authorization")) == f"Bearer {TOKEN}"
        if repository is None or (repository.private and not signed_in):
            raise Refusal(404 if signed_in else 401, "RepoNotFound")
        if repository.gated and not signed_in:
            raise Refusal(403, "GatedRepo")
        return repository

    def route(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        parts = path.split("/")
        if method in ("POST", "PUT") and path != "api/validate-yaml":
            given = headers.get("authorization", headers.get("Authorization", ""))
            if given != f"Bearer {TOKEN}" and parts[0] != "lfs":
                raise Refusal(401, "", "Invalid username or password.")
        if path == "api/validate-yaml":
            return _json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            request = json.loads(body)
            name = f"{request['organization']}/{request['name']}"
            if name in self.repositories:
                return _json(
                    {"error": "You already created this model repo", "url": f"{self.url}/{name}"}, 409
                )
            made = Repository(private=request.get("visibility") == "private")
            made.commit("main", {".gitattributes": b""})
            self.repositories[name] = made
            return _json({"url": f"{self.url}/{name}"})
        if parts[0] == "lfs":
            if hashlib.sha256(body).hexdigest() != parts[1]:
                raise Refusal(400, "", "another hash")
            self.uploaded[parts[1]] = body
            return 200, {}, b""
        if parts[:2] == ["api", "models"]:
            return self._api(method, "/".join(parts[2:4]), parts[4:], body, headers)
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{self.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return _json({"transfer": "basic", "objects": objects})
        if parts[2:3] == ["resolve"]:
            sha, files = self.repository("/".join(parts[:2]), headers).files(parts[3])
            name = "/".join(parts[4:])
            if name not in files:
                raise Refusal(404, "EntryNotFound")
            etag = hashlib.sha256(files[name]).hexdigest()
            return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "none"}, files[name]
        raise Refusal(404, "", f"{method} {path}")

    def _api(
        self, method: str, name: str, rest: list[str], body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        repository = self.repository(name, headers)
        if not rest or rest[0] == "revision":
            sha, files = repository.files("/".join(rest[1:]) or "main")
            return _json(
                {"id": name, "sha": sha, "siblings": [{"rfilename": file} for file in sorted(files)]}
            )
        if rest[0] == "tree":
            _, files = repository.files(rest[1])
            return _json([_entry(path, content) for path, content in sorted(files.items())])
        if rest[0] == "branch":
            repository.branches.setdefault(rest[1], repository.branches["main"])
            return _json({})
        if rest[0] == "preupload":
            wanted = json.loads(body)["files"]
            return _json({
                "files": [
                    {"path": file["path"], "shouldIgnore": False,
                     "uploadMode": "lfs" if file["size"] > LFS_BYTES else "regular"}
                    for file in wanted
                ]
            })  # fmt: skip
        if rest[0] == "commit" and method == "POST":
            _, files = repository.files(rest[1])
            files = dict(files)
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = self.uploaded[value["oid"]]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            sha = repository.commit(rest[1], files)
            return _json({"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{name}/commit/{sha}"})
        raise Refusal(404, "", f"{method} {rest}")


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest(),
    }  # fmt: skip
    if len(content) > LFS_BYTES:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _json(content: Any, status: int = 200) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/json"}, json.dumps(content).encode()
