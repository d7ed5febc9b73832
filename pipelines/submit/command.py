"""`sparse-detr submit`: sends a command, follows its log; status, logs, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from pipelines.cli.console import error_console
from pipelines.submit.config import JobConfig, SubmitConfig
from pipelines.submit.job import exit_code, follow, job_status
from pipelines.submit.job import stop as stop_job
from pipelines.submit.run import connect, submit

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient


def submit_command(config: SubmitConfig) -> int:
    """Send a command; follow its log unless told otherwise."""
    console = error_console()
    client, job = submit(config)
    console.print(f"Job [bold]{job}[/] accepted.", highlight=False)
    if config.detach:
        _say_how_to_follow(console, config.resolved(), job)
        return 0
    return _follow(client, job, config.resolved())


def status(config: JobConfig) -> int:
    """Show a job's state; the exit code is the job's."""
    client = connect(config.resolved())
    Console().print(job_status(client, config.id))
    return exit_code(client, config.id)


def logs(config: JobConfig) -> int:
    """Follow a job's log to its end; the exit code is the job's."""
    client = connect(config.resolved())
    job_status(client, config.id)
    return _follow(client, config.id, config.resolved())


def stop(config: JobConfig) -> int:
    """End a job."""
    client = connect(config.resolved())
    before = job_status(client, config.id)
    Console().print("stopping" if stop_job(client, config.id) else before)
    return 0


def _follow(client: JobSubmissionClient, job: str, address: str) -> int:
    output, console = Console(), error_console()
    try:
        code = follow(client, job, lambda text: output.out(text, end="", highlight=False))
    except KeyboardInterrupt:
        console.print(f"\nDetached; job [bold]{job}[/] goes on.", highlight=False)
        _say_how_to_follow(console, address, job)
        return 130
    console.print(f"Job [bold]{job}[/]: {job_status(client, job)}", highlight=False)
    return code


def _say_how_to_follow(console: Console, address: str, job: str) -> None:
    for word in ("logs", "status", "stop"):
        console.print(f"  sparse-detr submit {word} {job} --address {address}", highlight=False, soft_wrap=True)
