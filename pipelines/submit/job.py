"""A job on a Ray cluster: its log, its state, its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparse_detr.errors import ConfigError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

FINISHED = ("SUCCEEDED", "FAILED", "STOPPED")
_PAUSE_SECONDS = 1.0
_RETRIES = 60
"""Connections to a log that may fail in a row: with a second between them, a head that restarts has a minute."""


def follow(client: JobSubmissionClient, job: str, write: Callable[[str], None]) -> int:
    """Pass the job's log on until it ends; returns the exit code that stands for its end.

    A connection that breaks is taken up again where it broke off.

    Raises:
        ConfigError: it broke many times in a row without anything new.
    """
    import aiohttp

    log, failures = _Log(write), 0
    while True:
        before = log.shown
        try:
            asyncio.run(log.tail(client, job))
            if client.get_job_status(job).value in FINISHED:
                return exit_code(client, job)
            failures = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            failures = 1 if log.shown > before else failures + 1
            if failures > _RETRIES:
                raise ConfigError(
                    f"address: the log of job {job!r} is out of reach ({error}); the job may go on, "
                    f"`sparse-detr submit logs {job}` takes it up again"
                ) from error
            if failures == 1:
                write(f"\n(the log's connection broke: {error}; connecting again)\n")
        time.sleep(_PAUSE_SECONDS)


class _Log:
    """A job's log, and how much of it has been passed on, over all connections."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self.shown = 0
        """Characters."""

    async def tail(self, client: JobSubmissionClient, job: str) -> None:
        """Write what is new until the connection ends; every connection starts at the log's beginning."""
        skip = self.shown
        async for chunk in client.tail_job_logs(job):
            fresh = chunk[skip:]
            skip = max(0, skip - len(chunk))
            self.shown += len(fresh)
            self._write(fresh)


def job_status(client: JobSubmissionClient, job: str) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.

    Raises:
        ConfigError: the cluster knows no such job, or does not answer.
    """
    try:
        return str(client.get_job_status(job).value)
    except RuntimeError as error:
        raise ConfigError(f"job: {job!r} is not known to the cluster: {error}") from error
    except OSError as error:
        raise ConfigError(f"address: the cluster does not answer ({error}); job {job!r} may go on") from error


def exit_code(client: JobSubmissionClient, job: str) -> int:
    """0 while it runs or when it succeeded; the command's own code when it failed; 130 when it was stopped."""
    status = job_status(client, job)
    if status == "STOPPED":
        return 130
    if status == "FAILED":
        return client.get_job_info(job).driver_exit_code or 1
    return 0


def stop(client: JobSubmissionClient, job: str) -> bool:
    """Ask the job to end; False if it had ended already."""
    job_status(client, job)
    return bool(client.stop_job(job))
