"""Ways in which a response can fail: each takes the handler and the correct response."""

import gzip
import json
import socket
import struct
import time
import zlib
from email.utils import formatdate
from functools import cache

from tests.services.archive_server import reply


def sends(status, body=b"", content_type="text/html", **headers):
    return lambda handler, answer: reply(handler, body, status, content_type, **headers)


def changes(change):
    """The correct response, a list of header and records, after `change`."""

    def act(handler, answer):
        reply(handler, json.dumps(change(answer)).encode())

    return act


def reset(handler, answer):
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def hang_up(handler, answer):
    handler.close_connection = True


def be_silent(handler, answer):
    handler.close_connection = True
    time.sleep(0.2)  # longer than the client waits; in the thread of the server


def less_than_promised(handler, answer):
    body = json.dumps(answer).encode()
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body[:-40])
    handler.close_connection = True


def drip(handler, answer):
    """Send a few bytes at a time; the client's clock advances by a second for each."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(200):
        handler.wfile.write(b"[")
        handler.wfile.flush()
        time.sleep(0.001)


def damaged_gzip(handler, answer):
    packed = bytearray(gzip.compress(json.dumps(answer).encode()))
    packed[30:60] = bytes(30)
    reply(handler, bytes(packed), Content_Encoding="gzip")


def cut_gzip(handler, answer):
    packed = gzip.compress(json.dumps(answer).encode())
    reply(handler, packed[: len(packed) // 2], Content_Encoding="gzip")


@cache
def packed_spaces():
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(b" " * (1 << 20)) for _ in range(80)), packer.flush()])


def bomb(handler, answer):
    """Send 80 MiB of spaces in 0.4 MB."""
    reply(handler, packed_spaces(), Content_Encoding="gzip")


def endless(handler, answer):
    """Send chunks for as long as the client listens."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(1 << 20):
        handler.wfile.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")


def announces_too_much(handler, answer):
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()
    handler.close_connection = True


def good_gzip(handler, answer):
    reply(handler, gzip.compress(json.dumps(answer).encode()), Content_Encoding="gzip")


def as_text(handler, answer):
    reply(handler, json.dumps(answer).encode(), content_type="text/plain")


def cut_json(handler, answer):
    reply(handler, json.dumps(answer).encode()[:-40])


PAGE = b"<html><head><style>b {}</style></head><body><h1>Down for\nmaintenance</h1></body></html>"

TRANSIENT = {  # {name: (action, message if the failure persists)}
    "429": (sends(429, b'{"detail": "Request was throttled."}'), r"status 429 \(Request was throttled\.\)"),
    "429-retry-after": (sends(429, Retry_After="7"), "status 429"),
    "429-retry-after-date": (
        lambda handler, answer: sends(429, Retry_After=formatdate(time.time() + 30, usegmt=True))(handler, 0),
        "status 429",
    ),
    "429-retry-after-nonsense": (sends(429, Retry_After="soon"), "status 429"),
    "500": (sends(500, b'{"errorMessage": "database", "errorCode": "UNKNOWN"}'), r"500 \(database\)"),
    "502-proxy-page": (sends(502, PAGE), r"502 \(Down for maintenance\)"),
    "503-retry-after-0": (sends(503, Retry_After="0"), "status 503"),
    "504": (sends(504), "status 504"),
    "silence": (be_silent, "no response"),
    "connection-reset": (reset, "the connection failed"),
    "hung-up": (hang_up, "the connection failed"),
    "html-with-200": (sends(200, PAGE), r"web page, not JSON \(Down for maintenance\)"),
    "empty-body": (sends(200, b""), "empty"),
    "white-space": (sends(200, b" \n"), "empty"),
    "cut-json": (cut_json, "not JSON, or is truncated"),
    "not-utf8": (sends(200, b'["\xff\xfe"]'), "not JSON"),
    "nested-without-end": (sends(200, b"[" * 200_000), "not JSON"),
    "less-than-content-length": (less_than_promised, "the connection failed"),
    "damaged-gzip": (damaged_gzip, "damaged|truncated"),
    "cut-gzip": (cut_gzip, "damaged|truncated"),
    "gzip-in-gzip": (sends(200, b"x", Content_Encoding="gzip, gzip"), "encoding gzip, gzip"),
    "slow-drip": (drip, "took more than 8 s"),
    "json-null": (sends(200, b"null"), "not a list of records"),
    "json-object": (sends(200, b'{"records": []}'), "not a list of records"),
    "list-of-numbers": (sends(200, b"[1, 2, 3]"), "not a list of records"),
    "no-header": (changes(lambda answer: answer[1:]), "does not begin with a header"),
}
"""Failures that are retried."""

HARMLESS = {
    "wrong-content-type": as_text,
    "gzip": good_gzip,
    "reversed": changes(lambda answer: [answer[0], *answer[:0:-1]]),
    "warnings": changes(lambda answer: [{"status": {"warnings": ["slow"]}}, *answer[1:]]),
    "identical-records-twice": changes(lambda answer: [*answer, answer[-1]]),
    "records-nobody-asked-for": changes(lambda answer: [*answer, {**answer[1], "id": "stranger"}]),
    "a-record-without-an-id": changes(
        lambda answer: [*answer, {key: value for key, value in answer[1].items() if key != "id"}]
    ),
    "short-page": changes(lambda answer: answer[:-2]),
    "no-records-at-first": changes(lambda answer: answer[:1]),
}
"""Irregular responses that are used all the same."""

FINAL = {
    "400": (sends(400, b'{"errorMessage": "bad path", "errorCode": "BADPATH"}'), r"status 400 \(bad path\)"),
    "401": (sends(401, b'{"errorMessage": "ANONYMOUS is declined access"}'), "declined access"),
    "404": (sends(404, b""), "status 404"),
    "redirect-loop": (sends(307, Location="/api/spectras/"), "too many redirects"),
    "gzip-bomb": (bomb, "longer than [0-9]+ MB"),
    "announces-a-terabyte": (announces_too_much, "longer than [0-9]+ MB"),
    "asks-to-wait-a-day": (sends(429, Retry_After="7200"), "asks to wait 7200 s; run the same command"),
}
"""Failures that are not retried."""
