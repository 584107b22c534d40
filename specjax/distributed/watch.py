"""Connections between process 0 and the others, by which they meet, and by which all end if one does.

JAX notices a lost process after a timeout, and then aborts the others with a stack trace. A closed connection
tells them at once, and why. Process 0 listens on the port below that of JAX. Messages are lines of JSON:

- {"process": 1, "processes": 2, "versions": {...}} from a process that arrives;
- {"go": true} to all, once all have arrived;
- {"failed": REASON} from a process that ends with an error, and from process 0 about any;
- {"done": true} from a process that needs the others no longer.

A connection that is closed without one of the last two means that the process was killed or its host lost.
"""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from specjax.distributed.cluster import Cluster
from specjax.errors import ConfigError, SpecjaxError

Versions = Mapping[str, str]

_LONGEST = 1 << 16  # bytes of a line
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
"""A host that is lost without a word is noticed after 50 s, before JAX's own timeout."""


class Line:
    """A connection that carries lines of JSON.

    Attributes:
        process: the index of the process at the other end.
        finished: whether it needs this one no longer.
    """

    def __init__(self, connection: socket.socket, process: int = 0) -> None:
        """Take over a connected socket."""
        self.socket, self.process, self.finished = connection, process, False
        self._received = b""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, **message: Any) -> None:
        """Send a message; nothing happens if the other end has gone."""
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None if the connection is closed or carries something else.

        Raises:
            TimeoutError: there is none within the socket's timeout.
        """
        try:
            while b"\n" not in self._received:
                data = self.socket.recv(4096)
                if not data or len(self._received) > _LONGEST:
                    return None
                self._received += data
            line, _, self._received = self._received.partition(b"\n")
            message = json.loads(line)
        except TimeoutError:
            raise
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    @property
    def pending(self) -> bool:
        """Whether a whole message has been received and not been read."""
        return b"\n" in self._received

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


class Watch:
    """Ends this process when another fails, from the moment that all have met until `close`."""

    def __init__(self, process: int, lines: list[Line], end: Callable[[str], None]) -> None:
        """Start watching.

        Args:
            process: the index of this one.
            lines: connections to all others in process 0, and to process 0 in the others.
            end: is called with the reason when another process has failed.
        """
        self._process, self._lines, self._end = process, lines, end
        self._leaving = False
        threading.Thread(target=self._watch, name="specjax-watch", daemon=True).start()

    def fail(self, reason: str) -> None:
        """Tell the others that this process ends with an error."""
        self._leaving = True
        for line in self._lines:
            line.send(failed=f"process {self._process} failed: {reason}")

    def close(self) -> None:
        """Tell the others that this process needs them no longer."""
        self._leaving = True
        for line in self._lines:
            line.send(done=True)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for line in self._lines:
                line.socket.settimeout(None)
                selector.register(line.socket, selectors.EVENT_READ, line)
            while selector.get_map():
                waiting = [line for line in self._lines if line.pending and not line.finished]
                for line in waiting or [key.data for key, _ in selector.select()]:
                    if self._read(line):
                        line.finished = True
                        selector.unregister(line.socket)
                        line.close()

    def _read(self, line: Line) -> bool:
        """Read a message, and end this process if another has failed; return whether it is the last one."""
        message = line.receive()
        if self._leaving or (message is not None and "done" in message):
            return True
        killed = f"process {line.process} was killed, or its host was lost: start all again to resume"
        reason = str((message or {}).get("failed", killed))
        for other in self._lines:
            if other is not line:
                other.send(failed=reason)
        self._end(reason)
        return True


def meet(cluster: Cluster, versions: Versions, *, wait: float, end: Callable[[str], None]) -> Watch:
    """Wait until all processes are here, and watch them.

    Args:
        cluster: the processes.
        versions: of what must be the same in all of them.
        wait: seconds.
        end: see `Watch`.

    Raises:
        ConfigError: they differ in versions or number, two have the same index, or the port is in use.
        SpecjaxError: one is missing after the time to wait.
    """
    deadline = time.monotonic() + wait
    if cluster.process == 0:
        lines = _receive_all(cluster, versions, deadline, wait)
    else:
        lines = [_go_to_main(cluster, versions, deadline, wait)]
    return Watch(cluster.process, lines, end)


def _receive_all(cluster: Cluster, versions: Versions, deadline: float, wait: float) -> list[Line]:
    """Receive the other processes in process 0, and let them go."""
    arrived: dict[int, Line] = {}
    with _listen(cluster.port - 1) as server:
        while len(arrived) < cluster.processes - 1:
            server.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                connection = server.accept()[0]
            except TimeoutError:
                missing = [str(k) for k in range(1, cluster.processes) if k not in arrived]
                some = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
                reason = f"of {cluster.processes} processes, these are missing after {wait:g} s: {some}"
                raise _refused(arrived, SpecjaxError(reason)) from None
            line = Line(connection)
            connection.settimeout(5)
            hello = _hello(line)
            if hello is None:  # somebody else
                line.close()
                continue
            line.process = hello["process"]
            if reason := _objection(hello, cluster, versions, arrived):
                raise _refused({**arrived, -1: line}, ConfigError(reason))
            arrived[line.process] = line
    for line in arrived.values():
        line.send(go=True)
    return list(arrived.values())


def _hello(line: Line) -> dict[str, Any] | None:
    with contextlib.suppress(TimeoutError):
        message = line.receive() or {}
        kinds = {"process": int, "processes": int, "versions": dict}
        if all(isinstance(message.get(name), kind) for name, kind in kinds.items()):
            return message
    return None


def _objection(
    hello: Mapping[str, Any], cluster: Cluster, versions: Versions, arrived: Mapping[int, Line]
) -> str:
    """Return why a process cannot take part, "" if it can."""
    index = hello["process"]
    if hello["processes"] != cluster.processes:
        return f"process 0 expects {cluster.processes} processes, process {index} {hello['processes']}"
    if index in arrived or index == 0:
        return f"two processes have the index {index}"
    for name, version in versions.items():
        if hello["versions"].get(name) != version:
            return f"{name} is {version} in process 0, but {hello['versions'].get(name)} in process {index}"
    return ""


def _refused(arrived: Mapping[int, Line], error: SpecjaxError) -> SpecjaxError:
    """Tell the processes that have arrived of an error, and return it."""
    for line in arrived.values():
        line.send(failed=str(error))
        line.close()
    return error


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=512)
        return socket.create_server(("", port), backlog=512)
    except OSError as error:
        raise ConfigError(
            f"process 0 cannot listen on port {port}: {error.strerror}. Give another --coordinator HOST:PORT"
        ) from None


def _go_to_main(cluster: Cluster, versions: Versions, deadline: float, wait: float) -> Line:
    """Connect to process 0 and wait until all are there."""
    host, port = cluster.host, cluster.port - 1
    missing = SpecjaxError(f"process 0 was not reached at {host}, port {port}, within {wait:g} s")
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise missing
        try:
            connection = socket.create_connection((host, port), timeout=left)
        except OSError:  # it is not there yet, or has no name yet
            time.sleep(min(0.2, left))
            continue
        line = Line(connection)
        line.send(process=cluster.process, processes=cluster.processes, versions=dict(versions))
        connection.settimeout(max(deadline - time.monotonic(), 0) + 10)  # process 0 gives up first
        try:
            answer = line.receive() or {}
        except TimeoutError:
            line.close()
            raise missing from None
        if "go" in answer:
            return line
        line.close()
        raise SpecjaxError(str(answer.get("failed", "process 0 ended before all processes had arrived")))
