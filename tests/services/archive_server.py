"""A local server with the interface of SPARCL and synthetic stars, which can be made to fail.

Its responses have the form of the real ones: a header first, the archive's internal field names, records in
no order, at most as many as requested.
"""

import contextlib
import json
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import numpy as np

# Internal names that differ from the public ones, as some of the real ones do.
INSIDE = {"sparcl_id": "id", "flux": "spectra.coadd.flux", "ivar": "spectra.coadd.ivar"}
FIELDS = (
    "sparcl_id specid targetid data_release ra dec redshift redshift_err redshift_warning spectype "
    "specprimary wavelength flux ivar mask"
).split()
CORE = FIELDS[:11]
RANGES = ("ra", "dec", "redshift")


def uuid(number):
    return f"{number:08x}-1111-4222-8333-{number:012x}"


def star(number, grid=None, **changes):
    """A record under the public names: star `number`, at ra `number` degrees."""
    grid = 3600 + 0.8 * np.arange(60) if grid is None else grid
    flux = 10.0 + number + np.sin(np.arange(len(grid)))
    return {
        "sparcl_id": uuid(number),
        "specid": 39627652591521181 + number,  # beyond 2**53, which a float cannot represent
        "targetid": 39627652591521181 + number,
        "data_release": "DESI-EDR",
        "ra": float(number % 360),
        "dec": float(number // 360),
        "redshift": 1e-5 * number,
        "redshift_err": 1e-6,
        "redshift_warning": 0,
        "spectype": "STAR",
        "specprimary": True,
        "wavelength": [float(w) for w in grid],
        "flux": [float(f) for f in flux],
        "ivar": [4.0] * len(grid),
        "mask": [0] * len(grid),
    } | changes


class Archive:
    """The server.

    Attributes:
        stars: {sparcl_id: record}.
        asked: [(path, query, body)] of every request.
        failures: [(path, action, after)]; the first such action responds in place of the server to a request
            to that path after the first `after` requests.
    """

    def __init__(self, stars):
        self.stars = {record["sparcl_id"]: record for record in stars}
        self.asked = []
        self.failures = []
        self._lock = threading.Lock()
        archive = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # otherwise each response waits 40 ms

            def do_GET(self):
                archive._serve(self, None)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                archive._serve(self, json.loads(body))

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def fail(self, action: Callable, path="/api/spectras/", times=1, after=0):
        """Let `action(handler, answer)` respond to requests to a path, given the correct answer."""
        self.failures += [(path, action, after)] * times

    def count(self, path):
        return sum(asked[0] == path for asked in self.asked)

    def _serve(self, handler, body):
        parts = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        with self._lock:
            before = self.count(parts.path)
            self.asked.append((parts.path, query, body))
            chosen = next((t for t in self.failures if t[0] == parts.path and before >= t[2]), None)
            if chosen:
                self.failures.remove(chosen)
        with contextlib.suppress(ConnectionError):  # the client may hang up
            status, answer = self._answer(parts.path, query, body)
            if chosen:
                chosen[1](handler, answer)
            else:
                reply(handler, json.dumps(answer).encode(), status)

    def _answer(self, path, query, body):
        if path == "/api/datafields/":
            return 200, [
                {
                    "data_release": release,
                    "newdp": name,
                    "origdp": INSIDE.get(name, name),
                    "storage": "C" if name in CORE else "S",
                    "default": True,
                    "all": True,
                }
                for release in ("DESI-EDR", "SDSS-DR17")
                for name in FIELDS
            ]
        if path == "/api/find/":
            return self._find(query, body)
        if path == "/api/spectras/":
            return self._spectras(query, body)
        return 404, {"errorMessage": "no such path", "errorCode": "BADPATH"}

    def _find(self, query, body):
        ours = {INSIDE.get(name, name): name for name in FIELDS}
        if not set(body["outfields"]) <= {INSIDE.get(name, name) for name in CORE}:
            return 400, {"errorMessage": "outfields are not core fields", "errorCode": "BADPATH"}
        found = [s for s in self.stars.values() if all(_fits(s, ours, c) for c in body["search"])]
        if query.get("count") == "y":
            return 200, [header(), {"count": len(found)}]
        random.Random(1).shuffle(found)
        found = found[: int(query["limit"])]
        return 200, [header(), *({n: s[ours[n]] for n in body["outfields"]} | _release(s) for s in found)]

    def _spectras(self, query, body):
        ours = {INSIDE.get(name, name): name for name in FIELDS}
        if query.get("format") != "json" or not set(query.get("include", "").split(",")) <= set(ours):
            return 400, {"errorMessage": "unknown include", "errorCode": "BADINCL"}
        found = [self.stars[name] for name in body if name in self.stars]
        random.Random(2).shuffle(found)
        names = query["include"].split(",")
        return 200, [header(), *({n: s[ours[n]] for n in names if ours[n] in s} | _release(s) for s in found)]


@contextlib.contextmanager
def serve(stars, monkeypatch):
    """Serve stars from an archive that the environment names."""
    server = Archive(stars)
    monkeypatch.setenv("SPECJAX_SPARCL_URL", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    try:
        yield server
    finally:
        server.close()


def header(**status):
    return {"status": {"success": True, "info": [], "warnings": []} | status, "UNITS": {}}


def reply(handler, body, status=200, content_type="application/json", **headers):
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def _release(record):
    return {"_dr": record["data_release"]}


def _fits(record, ours, constraint):
    name, *values = constraint
    value = record[ours[name]]
    if name in RANGES:
        return values[0] <= value <= values[1]
    return value in values
