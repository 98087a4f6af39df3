"""A Hugging Face hub on the loopback interface, for push and pull in processes of their own."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule

REVISION = "0" * 40
ROUTES = Map(
    [
        Rule("/api/repos/create", methods=["POST"], endpoint="create"),
        Rule("/api/validate-yaml", methods=["POST"], endpoint="validate_yaml"),
        Rule("/api/models/<user>/<name>", methods=["GET"], endpoint="info"),
        Rule("/api/models/<user>/<name>/revision/<_>", methods=["GET"], endpoint="info"),
        Rule("/api/models/<user>/<name>/tree/<_>", methods=["GET"], endpoint="tree"),
        Rule("/api/models/<user>/<name>/tree/<_>/<path:under>", methods=["GET"], endpoint="tree"),
        Rule("/api/models/<user>/<name>/preupload/<_>", methods=["POST"], endpoint="preupload"),
        Rule("/api/models/<user>/<name>/commit/<_>", methods=["POST"], endpoint="commit"),
        Rule("/<user>/<name>.git/info/lfs/objects/batch", methods=["POST"], endpoint="lfs_batch"),
        Rule("/lfs/<oid>", methods=["PUT"], endpoint="lfs_put"),
        Rule("/<user>/<name>/resolve/<_>/<path:path>", methods=["GET"], endpoint="resolve"),
    ]
)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def reply(value: object) -> Response:
    return Response(json.dumps(value), content_type="application/json")


def missing(code: str) -> Response:
    return Response(status=404, headers={"X-Error-Code": code, "X-Repo-Commit": REVISION})


@dataclass
class LoopbackHub:
    """The hub's repositories in memory; `run` starts Python processes that know no other hub.

    Attributes:
        server: The server it answers on.
        folder: Where processes run and keep their caches.
        repos: File contents by path by repository.
        blobs: Large files uploaded, by their SHA-256, until a commit names them.
    """

    server: HTTPServer
    folder: Path
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    runs: int = 0

    @property
    def endpoint(self) -> str:
        return self.server.url_for("").rstrip("/")

    def environment(self) -> dict[str, str]:
        """Environment of a process that has never seen a hub, and sees this one only."""
        self.runs += 1
        hidden = ("HF_", "TRANSFORMERS_")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(hidden)}
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder / f"home{self.runs}"),
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def run(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script in a new process with an empty cache, in `folder`."""
        run = subprocess.run(
            [sys.executable, "-c", script],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert not check or run.returncode == 0, run.stderr
        return run

    def handle(self, request: Request) -> Response:
        try:
            endpoint, values = ROUTES.bind_to_environ(request.environ).match()
        except HTTPException as error:
            raise AssertionError(f"no route for {request.method} {request.url}") from error
        return getattr(self, endpoint)(request, **{k: v for k, v in values.items() if k != "_"})

    def create(self, request: Request) -> Response:
        wanted = request.get_json()
        repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
        self.repos.setdefault(repo, {})
        return reply({"url": f"{self.endpoint}/{repo}", "name": repo})

    def validate_yaml(self, request: Request) -> Response:
        return reply({"errors": [], "warnings": []})

    def info(self, request: Request, user: str, name: str) -> Response:
        repo = f"{user}/{name}"
        if repo not in self.repos:
            return missing("RepoNotFound")
        siblings = [{"rfilename": path} for path in self.repos[repo]]
        return reply({"id": repo, "modelId": repo, "sha": REVISION, "siblings": siblings})

    def tree(self, request: Request, user: str, name: str, under: str = "") -> Response:
        return reply(
            [
                {"type": "file", "path": path, "size": len(content), "oid": sha256(content)}
                for path, content in self.repos[f"{user}/{name}"].items()
                if path.startswith(under)
            ]
        )

    def preupload(self, request: Request, user: str, name: str) -> Response:
        def mode(path: str) -> str:
            return "lfs" if path.endswith((".safetensors", ".png")) else "regular"

        paths = [file["path"] for file in request.get_json()["files"]]
        files = [{"path": p, "uploadMode": mode(p), "shouldIgnore": False} for p in paths]
        return reply({"files": files})

    def lfs_batch(self, request: Request, user: str, name: str) -> Response:
        def instruct(wanted: dict[str, object]) -> dict[str, object]:
            href = f"{self.endpoint}/lfs/{wanted['oid']}"
            return wanted | {"actions": {"upload": {"href": href}}}

        objects = [instruct(wanted) for wanted in request.get_json()["objects"]]
        return reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, request: Request, oid: str) -> Response:
        assert sha256(request.data) == oid
        self.blobs[oid] = request.data
        return Response()

    def commit(self, request: Request, user: str, name: str) -> Response:
        files = self.repos[f"{user}/{name}"]
        for line in request.data.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.blobs.pop(value["oid"])
            elif entry["key"] != "header":
                raise AssertionError(f"unknown commit entry {entry['key']}")
        url = f"{self.endpoint}/{user}/{name}/commit/{REVISION}"
        return reply({"success": True, "commitOid": REVISION, "commitUrl": url})

    def resolve(self, request: Request, user: str, name: str, path: str) -> Response:
        if f"{user}/{name}" not in self.repos:
            return missing("RepoNotFound")
        content = self.repos[f"{user}/{name}"].get(path)
        if content is None:
            return missing("EntryNotFound")
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{sha256(content)}"'}
        return Response(content, headers=headers, content_type="application/octet-stream")


@pytest.fixture(scope="module")
def loopback_hub(tmp_path_factory):
    server = HTTPServer(host="127.0.0.1", threaded=True)
    hub = LoopbackHub(server, tmp_path_factory.mktemp("hub"))
    server.expect_request(re.compile(".*")).respond_with_handler(hub.handle)
    with server:
        yield hub
        server.check()
