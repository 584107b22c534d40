"""Requests to a server that fails; time is injected, so that nothing waits."""

import tracemalloc
from dataclasses import replace

import pytest

from specjax.errors import ConfigError, DownloadError
from specjax.services.http import JsonService
from specjax.services.retry import Retry, TransientError
from tests.services import failures

PATH = "/api/datafields/"


def rows(answer):
    if not isinstance(answer, list) or not all(isinstance(row, dict) for row in answer):
        raise TransientError("not rows")
    return len(answer)


@pytest.fixture
def ask(archive, retry):
    said = []

    def call(**changes):
        service = JsonService(root=archive.url, retry=replace(retry, **changes), say=said.append)
        return service.get(PATH, rows)

    call.said = said
    return call


# A missing header does not matter to this request.
@pytest.mark.parametrize("name", [name for name in failures.TRANSIENT if name != "no-header"])
def test_transient_failures_are_retried(archive, ask, waits, name):
    action, _ = failures.TRANSIENT[name]
    archive.fail(action, PATH)
    assert ask(read=0.1 if name == "silence" else 10.0) == 30
    assert len(waits) == 1
    assert len(ask.said) == 1
    assert ask.said[0].startswith(f"{archive.url}{PATH}: ")
    assert "trying again in" in ask.said[0]


@pytest.mark.parametrize("name", failures.FINAL)
def test_final_failures_are_not_retried(archive, ask, waits, name):
    action, message = failures.FINAL[name]
    archive.fail(action if name != "redirect-loop" else failures.sends(307, Location=PATH), PATH, times=99)
    with pytest.raises(DownloadError, match=message):
        ask()
    assert waits == []
    assert archive.count(PATH) == (6 if name == "redirect-loop" else 1)


@pytest.mark.parametrize("action", [failures.bomb, failures.endless, failures.announces_too_much])
def test_no_response_takes_more_memory_than_what_was_asked_for(archive, retry, action):
    service = JsonService(root=archive.url, retry=replace(retry, total=1e6))
    archive.fail(action, PATH)
    failures.packed_spaces()
    tracemalloc.start()
    try:
        with pytest.raises(DownloadError, match="longer than 1 MB"):
            service.post(PATH, {}, rows, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_waits_double_up_to_the_maximum_and_the_last_failure_is_reported(archive, ask, waits):
    archive.fail(failures.sends(500), PATH, times=99)
    with pytest.raises(DownloadError, match=r"returned status 500 \(tried 7 times\)"):
        ask(attempts=7, max_wait=9.0)
    assert waits == [0.75, 1.5, 3.0, 6.0, 6.75, 6.75]  # 1, 2, 4, 8, 9, 9 s, times 0.75
    waits.clear()
    with pytest.raises(DownloadError, match="tried once"):
        ask(attempts=1)
    assert waits == []


def test_jitter_spreads_waits_and_never_undercuts_retry_after():
    early, late = Retry(jitter=lambda: 0.0), Retry(jitter=lambda: 0.999)
    assert early.wait(3) == 2.0
    assert 3.9 < late.wait(3) < 4.0
    assert early.wait(1, retry_after=30.0) == 30.0
    assert 30.9 < late.wait(1, retry_after=30.0) < 31.0
    assert early.wait(50) == 30.0  # half of the maximum


def test_a_web_page_is_quoted_without_tags_and_control_characters(archive, ask):
    page = b"<html><script>alert(1)</script><p>\x1b[31mSorry,\n\n" + b"x" * 500
    archive.fail(failures.sends(403, page), PATH)
    with pytest.raises(DownloadError, match=r"returned status 403 \( ?\[31mSorry, x+\.\.\.\)$") as caught:
        ask()
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("root", ["", "archive", "ftp://archive/api", "http://", "/data/archive"])
def test_invalid_addresses_are_refused(root):
    with pytest.raises(ConfigError, match="http"):
        JsonService(root=root)


def test_a_proxy_of_the_environment_is_used(archive, retry, monkeypatch):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("http_proxy", archive.url)  # the server responds for any host, as a proxy does
    service = JsonService(root="http://archive.invalid", retry=retry)
    archive.fail(lambda handler, answer: failures.reply(handler, b"[{}]"), f"//archive.invalid{PATH}")
    archive.fail(lambda handler, answer: failures.reply(handler, b"[{}]"), PATH)
    assert service.get(PATH, rows) == 1
