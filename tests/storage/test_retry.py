"""Patience, with a clock and dice of our own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tarmill import storage
from tarmill.errors import AccessError, StorageError
from tarmill.storage.retry import RETRIED_STATUSES, Retrier, retry_after_s, with_retries


class Time:
    """A clock that moves only by pauses."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def retrier(time: Time, jitter: float = 1.0, **settings: float) -> Retrier:
    chosen = storage.StorageSettings(**settings)  # type: ignore[arg-type]
    return Retrier(chosen, time.pause, lambda: time.now, lambda low, high: low + (high - low) * jitter)


def endless(error: StorageError) -> None:
    raise error


def test_by_default_patience_lasts_five_minutes() -> None:
    time = Time()
    with pytest.raises(StorageError, match=r"busy; gave up after \d+ tries in 300 s") as caught:
        with_retries(lambda: endless(StorageError("busy", retryable=True, status=503)), retrier(time))
    assert time.now >= 300
    assert not caught.value.retryable
    assert caught.value.status == 503


def test_pauses_double_up_to_a_bound() -> None:
    time = Time()
    with pytest.raises(StorageError):
        with_retries(lambda: endless(StorageError("busy", retryable=True)), retrier(time))
    assert time.pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]


@given(jitter=st.floats(0, 1), tries=st.integers(1, 40))
def test_jitter_spreads_pauses_over_the_whole_of_the_bound(jitter: float, tries: int) -> None:
    time = Time()
    patient = retrier(time, jitter, retry_budget_s=1e9)
    for _ in range(tries):
        patient.failed(StorageError("busy", retryable=True))
    assert time.pauses[-1] == pytest.approx(min(30, 0.5 * 2 ** (tries - 1)) * jitter)


@pytest.mark.parametrize("error", [AccessError("no", status=403), StorageError("odd", status=400)])
def test_what_waiting_cannot_mend_is_told_at_once(error: StorageError) -> None:
    time = Time()
    with pytest.raises(StorageError) as caught:
        retrier(time).failed(error)
    assert caught.value is error
    assert time.pauses == []


def test_progress_renews_the_budget() -> None:
    time = Time()
    patient = retrier(time, retry_budget_s=10)
    for _ in range(100):
        patient.failed(StorageError("cut", retryable=True))
        time.now += 9
        patient.progress()
    assert time.now > 900


def test_a_server_that_asks_to_wait_is_obeyed() -> None:
    time = Time()
    retrier(time).failed(StorageError("busy", retryable=True, retry_after_s=120.0))
    assert time.pauses == [120]


def test_a_server_that_asks_to_wait_beyond_the_budget_is_given_up_at_once() -> None:
    time = Time()
    with pytest.raises(StorageError, match="asks to wait 3600 s"):
        retrier(time).failed(StorageError("busy", retryable=True, retry_after_s=3600.0))
    assert time.pauses == []


def test_one_long_failure_does_not_use_up_all_tries() -> None:
    time = Time()
    patient = retrier(time, retry_budget_s=10)
    time.now = 1000
    patient.failed(StorageError("the upload broke off at its end", retryable=True))
    assert len(time.pauses) == 1


@pytest.mark.parametrize(("headers", "seconds"), [
    ({}, None), ({"Retry-After": "7"}, 7), ({"Retry-After": " 0 "}, 0), ({"Retry-After": "-1"}, None),
    ({"Retry-After": "soon"}, None), ({"Retry-After": "²"}, None),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:10 GMT", "Date": "Wed, 21 Oct 2015 07:28:00 GMT"}, 10),
    ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT", "Date": "Wed, 21 Oct 2015 07:29:00 GMT"}, 0),
    ({"Retry-After": "Thu, 01 Jan 1970 00:00:30 GMT"}, 20),
])  # fmt: skip
def test_retry_after_is_seconds_or_a_date(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, lambda: 10.0) == seconds


@pytest.mark.parametrize(("status", "retried"), [
    (400, False), (401, False), (403, False), (404, False), (412, False), (408, True), (429, True), (500, True),
    (502, True), (503, True), (504, True), (501, False), (507, False),
])  # fmt: skip
def test_statuses_are_retried_that_may_get_better(status: int, retried: bool) -> None:
    assert (status in RETRIED_STATUSES) == retried
