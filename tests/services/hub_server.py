"""A local server with the interface of the Hugging Face hub: what is downloaded, uploaded and committed."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
"""The first commit of every repository."""

REPOSITORY = "someone/spectra"
TOKEN = "hf_of_a_test"
NOWHERE = "http://127.0.0.1:9"
"""An address at which nothing answers."""


@dataclass
class Repository:
    """The files of every commit, by commit and path, oldest first."""

    commits: dict = field(default_factory=dict)
    private: bool = False

    @property
    def head(self):
        return list(self.commits)[-1]

    @property
    def files(self):
        return self.commits[self.head]

    def commit(self, files):
        count = len(self.commits)
        sha = hashlib.sha1(str(count).encode()).hexdigest() if count else COMMIT
        self.commits[sha] = dict(files)
        return sha


class Hub(ThreadingHTTPServer):
    """The state of the hub.

    `repositories` are keyed by kind and name, ("models", "someone/spectra"); `served` replaces the content of
    files without changing the announced hashes; `asked` lists the requests; with `needs_token`, only requests
    that carry TOKEN may write.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.served, self.asked = {}, {}, []
        self.large, self.needs_token = {}, True
        self.url = f"http://127.0.0.1:{self.server_port}"

    def add(self, files, name=REPOSITORY, kind="models"):
        repository = self.repositories.setdefault((kind, name), Repository())
        repository.commit(files)
        return repository


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._read()

    def do_HEAD(self):
        self._read()

    def do_PUT(self):
        path = self._asked()
        self.server.large[path.removeprefix("/lfs/")] = self._body()
        self._send(200, b"")

    def do_POST(self):
        path, body = self._asked(), self._body()
        writes = not path.endswith("/validate-yaml")
        if writes and self.server.needs_token and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, b'{"error": "Invalid credentials"}')
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._json(
                {"transfer": "basic", "objects": [self._upload(o) for o in json.loads(body)["objects"]]}
            )
        elif "/preupload/" in path:
            self._json({"files": [_mode(file["path"]) for file in json.loads(body)["files"]]})
        else:
            self._commit(path.split("/"), [json.loads(line) for line in body.splitlines()])

    def log_message(self, *_):
        pass

    def _asked(self):
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append((self.command, path))
        return path

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _read(self):
        path = self._asked().strip("/").split("/")
        is_info = path[0] == "api"
        path = path[1:] if is_info else path
        kind = path.pop(0) if path[0] in ("models", "datasets") else "models"
        name, rest = "/".join(path[:2]), path[2:]
        repository = self.server.repositories.get((kind, name))
        if repository is None:
            self._missing("RepoNotFound", "Repository not found")
            return
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repository.head if revision == "main" else revision
        if commit not in repository.commits:
            self._missing("RevisionNotFound", "Invalid rev id")
        elif is_info:
            self._json(_info(name, commit, repository))
        else:
            self._file("/".join(rest[2:]), commit, repository.commits[commit])

    def _file(self, name, commit, files):
        if name not in files:
            self._missing("EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        data = self.server.served.get(name, files[name])
        self._send(200, data, {"ETag": f'"{_etag(name, files[name])}"', "X-Repo-Commit": commit})

    def _create(self, asked):
        key = (f"{asked.get('type') or 'model'}s", f"{asked['organization']}/{asked['name']}")
        if key in self.server.repositories:
            self._send(409, b'{"error": "You already created this repo"}')
            return
        private = asked.get("private") or asked.get("visibility") == "private"
        repository = self.server.add({".gitattributes": b"*.bin filter=lfs\n"}, key[1], key[0])
        repository.private = bool(private)
        self._json({"url": f"{self.server.url}/{key[1]}", "name": key[1], "id": key[1]})

    def _upload(self, asked):
        return {**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}"}}}

    def _commit(self, path, lines):
        name = f"{path[3]}/{path[4]}"
        repository = self.server.repositories[path[2], name]
        files = dict(repository.files)
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repository.head) != repository.head:
                self._send(412, b'{"error": "A commit has happened since"}')
                return
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files)
        self._json({"commitUrl": f"{self.server.url}/{name}/commit/{commit}", "commitOid": commit})

    def _missing(self, code, message, headers=None):
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _json(self, content):
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status, data, headers=None):
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _is_large(name):
    return name.endswith((".ckpt", ".bin", ".safetensors", ".h5"))


def _mode(path):
    return {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}


def _etag(name, data):
    """The SHA-256 of a large file, the git blob id of a small one."""
    if _is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info(name, commit, repository):
    """The hub's description of a repository, including hashes."""
    siblings = []
    for path, data in repository.commits[commit].items():
        sibling = {"rfilename": path, "size": len(data), "blobId": _etag("small", data)}
        if _is_large(path):
            lfs = {"sha256": _etag(path, data), "size": len(data), "pointerSize": 134}
            sibling["lfs"] = lfs
        siblings.append(sibling)
    about = {"_id": "1", "id": name, "modelId": name, "private": repository.private}
    return {**about, "sha": commit, "siblings": siblings}


@contextmanager
def running_hub():
    """Run a hub without repositories."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub(files, served=None):
    """Serve files of REPOSITORY by name; yields the address and the list of requests."""
    with running_hub() as server:
        server.add(files)
        server.served.update(served or {})
        yield server.url, server.asked


def use(server, monkeypatch, folder):
    """Make a hub the one of this process, with TOKEN, a cache in a folder, and uploads over plain HTTP."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SPECJAX_CACHE", str(folder / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return server
