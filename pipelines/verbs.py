"""What the verbs of the command line do with their configs, and what they show of the results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich.console import Console

from pipelines.console import error_console, findings_table, listing, progress_bar, say, values_table

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from pipelines.config import RunConfig
    from pipelines.data import CheckConfig, ImportVocConfig, MakeShapesConfig
    from pipelines.doctor import DoctorConfig
    from pipelines.predict.config import PredictConfig
    from pipelines.ray_session import RaySession
    from pipelines.run_start import RunStart
    from pipelines.submit import SubmitConfig


def doctor_verb(config: DoctorConfig) -> int:
    """Show the findings; 1 if something is broken."""
    from pipelines.doctor import as_records, examine, healthy

    findings = examine()
    console = Console()
    if config.json:
        console.print_json(json.dumps(as_records(findings)))
    else:
        console.print(findings_table(findings))
        broken = sum(finding.state == "broken" for finding in findings)
        console.print("Nothing is wrong." if not broken else f"[bold red]{broken} broken[/]; the remedies stand above.")
    return 0 if healthy(findings) else 1


def data_verb(config: ImportVocConfig | MakeShapesConfig | CheckConfig) -> int:
    """Make or check a data set; 1 if images are broken."""
    from pipelines.data import CheckConfig, ImportVocConfig, run_check, run_import_voc, run_shapes

    if isinstance(config, ImportVocConfig):
        report = run_import_voc(config)
    elif isinstance(config, CheckConfig):
        with progress_bar("Decoding") as move:
            report = run_check(config, move)
    else:
        with progress_bar("Drawing shapes") as move:
            report = run_shapes(config, move)
    console = Console()
    facts = {"annotations": report.source, "images": report.images, "boxes": report.boxes, "crowd boxes": report.crowd}
    console.print(values_table("Data set", facts | report.classes))
    for title, lines in (("Boxes left out", report.dropped), ("Images that cannot be decoded", report.broken)):
        if lines:
            console.print(listing(title, lines), markup=False, highlight=False)
    return 1 if report.broken else 0


def train_verb(config: RunConfig) -> int:
    """Train, with steps and loss on the progress bar, and show the best epoch and where the model lies."""
    from pipelines.ray_session import ray_session
    from pipelines.train import train

    with ray_session() as session, progress_bar("Training") as move:
        _say_where(session)
        result = train(
            config,
            on_start=lambda start: say(start.describe()),
            on_progress=lambda progress: move(progress.step, progress.steps),
        )
    best = result.best
    facts = {name: best[name] for name in ("epoch", "loss", "ap", "ap50", "ap75") if name in best}
    where: dict[str, object] = {"images/s": result.images_per_second, "seconds": result.seconds,
                                "model": result.checkpoint}  # fmt: skip
    where |= _start_rows(result.start) | _run_row(result.run_id)
    Console().print(values_table(f"Best epoch of {len(result.history)}", facts | where))
    return 0


def predict_verb(config: PredictConfig) -> int:
    """Detect, and show the counts and the first broken images."""
    from pipelines.predict.run import predict

    with progress_bar("Detecting") as move:
        result = predict(config, on_progress=move)
    console = Console()
    facts = {"images": result.images, "detections": result.detections, "images with errors": result.errors,
             "seconds": result.seconds, "output": result.output}  # fmt: skip
    console.print(values_table("Detections", facts))
    rows = [f"{row.uri}: {row.stage}: {row.message}" for row in result.error_rows]
    if rows:
        console.print(listing("Images with errors", rows), markup=False, highlight=False)
    return 0


def _say_where(session: RaySession) -> None:
    kind = "local Ray" if session.local else f"Ray at {session.address}"
    dashboard = f", dashboard {session.dashboard}" if session.dashboard else ""
    say(f"{kind}: {session.cpus:g} CPUs, {session.gpus:g} GPUs{dashboard}")


def _start_rows(start: RunStart) -> dict[str, object]:
    rows: dict[str, object] = {"boxes left out": len(start.data.dropped)}
    return rows if start.weights is None else rows | {"starting weights": start.weights.describe()}


def _run_row(run_id: str | None) -> dict[str, object]:
    return {"MLflow run": run_id} if run_id else {}


def submit_verb(config: SubmitConfig, command: list[str]) -> int:
    """Send a verb; follow its log unless told otherwise."""
    from pipelines import submit

    console = error_console()
    client, job = submit.submit(config, command)
    console.print(f"Job [bold]{job}[/] accepted.", highlight=False)
    if config.detach:
        _say_how_to_follow(console, config.resolved(), job)
        return 0
    return _follow(client, job, config.resolved())


def job_verb(word: str, job: str, address: str) -> int:
    """Status, logs or end of a job."""
    from pipelines.job import exit_code, job_status, stop
    from pipelines.submit import connect

    client = connect(address)
    status = job_status(client, job)
    if word == "logs":
        return _follow(client, job, address)
    if word == "stop":
        Console().print("stopping" if stop(client, job) else status)
        return 0
    Console().print(status)
    return exit_code(client, job)


def _follow(client: JobSubmissionClient, job: str, address: str) -> int:
    from pipelines.job import follow, job_status

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
