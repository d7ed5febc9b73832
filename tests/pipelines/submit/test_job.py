"""A job's log over connections that break, and what a cluster that does not answer says. The client is no real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import requests

from pipelines.submit import job
from pipelines.submit.job import follow, job_status, stop
from sparse_detr.errors import ConfigError

LOG = "one\ntwo\nthree\nfour\n"


class Client:
    """Each connection sends the log from its start, in chunks of its own, up to where it ends or breaks."""

    def __init__(self, *connections: tuple[int, int, Exception | None], state: str | Exception = "SUCCEEDED") -> None:
        self.connections = list(connections)
        self.state = state

    async def tail_job_logs(self, _job: str) -> AsyncIterator[str]:
        size, end, error = self.connections.pop(0)
        for start in range(0, end, size):
            yield LOG[start : min(start + size, end)]
        if error is not None:
            raise error

    def get_job_status(self, _job: str) -> Any:
        if isinstance(self.state, Exception):
            raise self.state
        return SimpleNamespace(value=self.state if not self.connections else "RUNNING")


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting."""
    waited: list[float] = []
    monkeypatch.setattr(job, "time", SimpleNamespace(sleep=waited.append))
    return waited


def _followed(client: Client) -> str:
    written: list[str] = []
    assert follow(client, "j", written.append) == 0  # type: ignore[arg-type]
    return "".join(line for line in written if "connection broke" not in line)


@pytest.mark.parametrize(
    "error", [RuntimeError("closed"), requests.ConnectionError("refused"), aiohttp.ServerDisconnectedError(), None]
)
def test_the_log_goes_on_where_its_connection_broke(error: Exception | None, pauses: list[float]) -> None:
    client = Client((4, 11, error), (3, 6, error), (5, 13, error), (100, len(LOG), None))
    assert _followed(client) == LOG
    assert len(pauses) == 3
    assert min(pauses) > 0


def test_a_log_that_stays_out_of_reach_ends_in_a_message(pauses: list[float]) -> None:
    broken = (4, 8, requests.ConnectionError("refused"))
    written: list[str] = []
    with pytest.raises(ConfigError, match=r"job 'j' is out of reach \(refused\).*submit logs j"):
        follow(Client(*[broken] * 100), "j", written.append)  # type: ignore[arg-type]
    assert written.count("one\n") == 1
    assert sum("connection broke" in line for line in written) == 1
    assert len(pauses) >= 60


def test_a_status_that_fails_while_the_log_is_followed_is_asked_again() -> None:
    class Flaky(Client):
        def get_job_status(self, job: str) -> Any:
            if len(self.connections) == 1:
                raise requests.ConnectionError("refused")
            return super().get_job_status(job)

    assert _followed(Flaky((4, 8, None), (4, len(LOG), None))) == LOG


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("404"), "'j' is not known"), (requests.ConnectionError("refused"), "does not answer")],
)
def test_a_cluster_without_an_answer_is_a_message(error: Exception, message: str) -> None:
    for ask in (job_status, stop):
        with pytest.raises(ConfigError, match=message):
            ask(Client(state=error), "j")  # type: ignore[arg-type]
