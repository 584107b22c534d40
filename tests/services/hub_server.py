"""A local server with the interface of the Hugging Face hub, for one repository."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/spectra"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer(body=True)

    def do_HEAD(self):
        self._answer(body=False)

    def log_message(self, *_):
        pass

    def _answer(self, body):
        path = unquote(urlsplit(self.path).path)
        files, served = self.server.files, self.server.served
        self.server.asked.append((self.command, path))
        if path.startswith(f"/api/models/{REPOSITORY}"):
            self._send(200, json.dumps(_info(files)).encode(), {"Content-Type": "application/json"}, body)
        elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
            name = path.partition(f"{COMMIT}/")[2]
            data = served.get(name, files[name])
            headers = {"ETag": f'"{_etag(name, files[name])}"', "X-Repo-Commit": COMMIT}
            self._send(200, data, headers, body)
        else:
            headers = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            self._send(404, b"{}", headers, body)

    def _send(self, status, data, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


def _is_large(name):
    return name.endswith((".ckpt", ".bin"))


def _etag(name, data):
    """The SHA-256 of a large file, the git blob id of a small one."""
    if _is_large(name):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _info(files):
    """The hub's description of the repository, including hashes."""
    siblings = []
    for name, data in files.items():
        sibling = {"rfilename": name, "size": len(data), "blobId": _etag("small", data)}
        if _is_large(name):
            lfs = {"sha256": _etag(name, data), "size": len(data), "pointerSize": 134}
            sibling["lfs"] = lfs
        siblings.append(sibling)
    return {"_id": "1", "id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "siblings": siblings}


@contextmanager
def hub(files, served=None):
    """Serve files by name; `served` replaces the content of some without changing the announced hashes.

    Yields the address and the list of requests.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.files, server.served, server.asked = files, served or {}, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
