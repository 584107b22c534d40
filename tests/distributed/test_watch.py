"""Processes that meet and watch each other, as threads that are connected through loopback."""

import contextlib
import queue
import socket
import threading

import pytest

from specjax.distributed.cluster import Cluster
from specjax.distributed.watch import meet
from specjax.errors import SpecjaxError
from tests.processes import free_address

VERSIONS = {"the version of jax": "1"}
SOON = 20  # seconds in which a loaded machine delivers a message


def processes(count):
    host, port = free_address().split(":")
    return [Cluster(host=host, port=int(port) + 1, processes=count, process=k) for k in range(count)]


STARTED = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    for member in STARTED:
        if member.watch is not None:
            member.watch.close()
    STARTED.clear()


class Member(threading.Thread):
    """One process that meets the others; `ends` receives why it would end."""

    def __init__(self, cluster, versions=VERSIONS, wait=SOON):
        super().__init__(daemon=True)
        self.cluster, self.versions, self.wait = cluster, versions, wait
        self.ends, self.watch, self.error = queue.Queue(), None, None
        STARTED.append(self)
        self.start()

    def run(self):
        try:
            self.watch = meet(self.cluster, self.versions, wait=self.wait, end=self.ends.put)
        except SpecjaxError as error:
            self.error = str(error)

    def joined(self):
        self.join(SOON)
        assert not self.is_alive()
        return self


def meeting(count, **options):
    return [each.joined() for each in [Member(cluster, **options) for cluster in processes(count)]]


def test_all_end_when_one_loses_its_connection():
    members = meeting(3)
    members[2].watch._lines[0].socket.shutdown(socket.SHUT_RDWR)  # as the kernel does for a killed process
    for other in members[:2]:
        assert other.ends.get(timeout=SOON).startswith("process 2 was killed, or its host was lost")


def test_all_end_when_the_first_is_lost():
    members = meeting(3)
    for line in members[0].watch._lines:
        line.socket.shutdown(socket.SHUT_RDWR)
    for other in members[1:]:
        # Here the first is still alive to tell one of the loss of the other, which it does if it is quick.
        assert "was killed, or its host was lost" in other.ends.get(timeout=SOON)


@pytest.mark.parametrize("which", [0, 2])
def test_all_others_learn_why_one_fails(which):
    members = meeting(3)
    members[which].watch.fail("the disk is full")
    for other in members[:which] + members[which + 1 :]:
        assert other.ends.get(timeout=SOON) == f"process {which} failed: the disk is full"
    assert members[which].ends.empty()


def test_those_that_have_finished_may_go():
    members = meeting(3)
    members[1].watch.close()
    with contextlib.suppress(
        OSError
    ):  # it closes its end by itself as soon as the first has closed the other
        members[1].watch._lines[0].socket.shutdown(socket.SHUT_RDWR)
    members[2].watch.fail("too late")  # the watch goes on with the others
    assert members[0].ends.get(timeout=SOON) == "process 2 failed: too late"


def test_two_messages_may_arrive_together():
    members = meeting(2)
    members[1].watch._lines[0].socket.sendall(b'{"hello": 1}\n{"failed": "the second"}\n')
    reasons = [members[0].ends.get(timeout=SOON)]
    assert reasons[0].startswith("process 1 was killed") or reasons == ["the second"]


def test_versions_must_be_the_same():
    clusters = processes(2)
    first, second = Member(clusters[0]), Member(clusters[1], {"the version of jax": "2"})
    expected = "the version of jax is 1 in process 0, but 2 in process 1"
    assert (first.joined().error, second.joined().error) == (expected, expected)


def test_two_processes_of_one_index():
    clusters = processes(3)
    members = [Member(clusters[0]), Member(clusters[1]), Member(clusters[1])]
    assert {each.joined().error for each in members} == {"two processes have the index 1"}


def test_numbers_of_processes_that_differ():
    two, three = processes(2)[0], processes(3)[1]
    three = Cluster(host=two.host, port=two.port, processes=3, process=1)
    members = [Member(two), Member(three)]
    assert {each.joined().error for each in members} == {"process 0 expects 2 processes, process 1 3"}


def test_those_that_are_missing_are_named():
    clusters = processes(4)
    first, second = Member(clusters[0], wait=2), Member(clusters[2], wait=2)
    expected = "of 4 processes, these are missing after 2 s: 1, 3"
    assert first.joined().error == expected
    assert second.joined().error == expected


def test_a_first_process_that_does_not_come():
    _, second = processes(2)
    reason = f"process 0 was not reached at 127.0.0.1, port {second.port - 1}, within 1 s"
    assert Member(second, wait=1).joined().error == reason


def test_a_port_that_is_taken():
    first, _ = processes(2)
    with socket.create_server(("", first.port - 1)):
        assert f"cannot listen on port {first.port - 1}" in Member(first).joined().error


def test_strangers_are_sent_away():
    clusters = processes(2)
    first = Member(clusters[0])
    while True:
        try:
            stranger = socket.create_connection((clusters[0].host, clusters[0].port - 1))
            break
        except ConnectionRefusedError:
            continue
    stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert Member(clusters[1]).joined().watch is not None
    assert first.joined().watch is not None
    stranger.close()
