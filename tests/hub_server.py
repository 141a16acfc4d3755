"""A hub on this machine: the requests by which huggingface_hub pushes and loads, answered from memory.

Large files are uploaded by Git LFS's basic transfer (https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md).
It knows nothing of Xet: who asks it must set HF_HUB_DISABLE_XET.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

CLOSE = 0
"""An answer that is none: the connection is closed, in the middle of the file if one was asked for."""

Fault = Callable[[str, str], int | None]
"""Method and path to a status to answer with (or ``CLOSE``); None answers as a hub would."""


@dataclass
class Repository:
    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def at(self, revision: str) -> str | None:
        commit = self.branches.get(revision, revision)
        return commit if commit in self.commits else None


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def object_name(path: str, data: bytes) -> str:
    """As Git LFS names large files, and as Git names others."""
    if is_large(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data)).hexdigest()


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.fault: Fault = lambda method, path: None
        self.asked: list[tuple[str, str]] = []


@contextmanager
def serving() -> Iterator[Hub]:
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self._body()
        hub.asked.append((self.command, path))
        fault = hub.fault(self.command, path)
        if fault == CLOSE and "/resolve/" not in path:
            self.close_connection = True
        elif fault:
            self._json(fault, {"error": f"refused with {fault}"})
        else:
            self._route(path, body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _route(self, path: str, body: bytes) -> None:
        for pattern, answer in (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/validate-yaml", self._valid),
            (r"/api/repos/create", self._create),
            (r"/objects/(\w+)(?:/verify)?", self._object),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._batch),
            (r"/api/models/([^/]+/[^/]+)/branch/(.+)", self._branch),
            (r"/api/models/([^/]+/[^/]+)/preupload/(.+)", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/(.+)", self._commit),
            (r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", self._tree),
            (r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", self._info),
            (r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self._file),
        ):
            if match := re.fullmatch(pattern, path):
                answer(body, *match.groups())
                return
        self._json(404, {"error": f"this hub does not know {self.command} {path}"})

    # Writing.

    def _whoami(self, body: bytes) -> None:
        if self._may_write():
            self._json(200, {"type": "user", "name": "me", "orgs": []})

    def _valid(self, body: bytes) -> None:
        self._json(200, {"errors": [], "warnings": []})

    def _create(self, body: bytes) -> None:
        if not self._may_write():
            return
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.server.repositories:
            self._json(409, {"error": "You already created this model repo", "url": f"{self.server.address}/{name}"})
            return
        private = bool(asked.get("private")) or asked.get("visibility") == "private"  # older and newer versions
        there = self.server.repositories[name] = Repository(private)
        there.commit("main", {".gitattributes": b""})
        self._json(200, {"url": f"{self.server.address}/{name}", "name": name, "id": name})

    def _branch(self, body: bytes, name: str, branch: str) -> None:
        there = self._repository(name)
        if there is not None and branch in there.branches:
            self._json(409, {"error": "Reference already exists"})
        elif there is not None:
            there.branches[branch] = there.branches["main"]
            self._json(200, {})

    def _preupload(self, body: bytes, name: str, revision: str) -> None:
        if not (found := self._files(name, revision)):
            return
        there = {path: object_name(path, data) for path, data in found[2].items()}
        files = [
            {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": oid}
            for path, oid in ((file["path"], there.get(file["path"])) for file in json.loads(body)["files"])
        ]
        self._json(200, {"files": files})

    def _batch(self, body: bytes, name: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            answer = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.server.objects:
                href = f"{self.server.address}/objects/{each['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        self._json(200, {"transfer": "basic", "objects": objects}, "application/vnd.git-lfs+json")

    def _object(self, body: bytes, oid: str) -> None:
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.objects[oid] = body
        self._json(200 if oid in self.server.objects else 404, {})

    def _commit(self, body: bytes, name: str, branch: str) -> None:
        there = self._repository(name)
        if there is None or not self._may_write():
            return
        files = dict(there.commits[there.branches[branch]])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = there.commit(branch, files)
        url = f"{self.server.address}/{name}/commit/{commit}"
        self._json(200, {"success": True, "commitOid": commit, "commitUrl": url})

    # Reading.

    def _info(self, body: bytes, name: str, revision: str | None) -> None:
        if found := self._files(name, revision or "main"):
            there, commit, files = found
            siblings = [{"rfilename": path} for path in files]
            info = {"_id": name, "id": name, "sha": commit, "private": there.private, "siblings": siblings, "tags": []}
            self._json(200, {**info, "downloads": 0, "likes": 0})

    def _tree(self, body: bytes, name: str, revision: str) -> None:
        if found := self._files(name, revision):
            files: list[dict[str, Any]] = []
            for path, data in found[2].items():
                oid = object_name(path, data)
                files.append({"type": "file", "path": path, "size": len(data), "oid": oid})
                if is_large(path):
                    files[-1]["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 133}
            self._json(200, files)

    def _file(self, body: bytes, name: str, revision: str, path: str) -> None:
        found = self._files(name, revision)
        if found is None:
            return
        _, commit, files = found
        if path not in files:
            self._json(404, {}, **{"X-Error-Code": "EntryNotFound"})
            return
        data, start = files[path], 0
        if match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start = int(match[1])
        part = data[start:]
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{object_name(path, data)}"')
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(part)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command != "HEAD":
            broken = self.server.fault(self.command, f"/{name}/resolve/{revision}/{path}") == CLOSE
            self.wfile.write(part[: len(part) // 2] if broken else part)
            self.close_connection |= broken

    # What they share.

    def _may_write(self) -> bool:
        if self.headers.get("Authorization") == "Bearer secret":
            return True
        self._json(401, {"error": "Invalid username or password."})
        return False

    def _repository(self, name: str) -> Repository | None:
        there = self.server.repositories.get(name)
        if there is None or (there.private and self.headers.get("Authorization") != "Bearer secret"):
            self._json(401, {"error": "Invalid username or password."}, **{"X-Error-Code": "RepoNotFound"})
            return None
        return there

    def _files(self, name: str, revision: str) -> tuple[Repository, str, dict[str, bytes]] | None:
        there = self._repository(name)
        if there is None:
            return None
        commit = there.at(revision)
        if commit is None:
            self._json(404, {"error": "Invalid rev id"}, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return there, commit, there.commits[commit]

    def _json(self, status: int, answer: Any, kind: str = "application/json", **headers: str) -> None:
        data = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
