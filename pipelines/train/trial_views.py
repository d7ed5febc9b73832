"""What the terminal shows of a run that was only tried, and of a step that was run again."""

from __future__ import annotations

from rich.console import Console

from pipelines.cli.console import listing, rows_table, values_table
from pipelines.cost.command import parts_table
from pipelines.train.dry_run import TrainingPlan
from pipelines.train.overfit import GOAL, Overfit
from pipelines.train.replay import Replay


def show_replay(found: Replay) -> int:
    """The step, its micro-batches, and where its numbers broke; 0 where they broke as in the training."""
    console = Console()
    facts: dict[str, object] = {
        "training said": found.why,
        "again as in the training": "yes, to the last bit" if found.reproduced else "no",
        "first number that is not finite": str(found.origin or "in no micro-batch alone"),
        "found in the": found.phase,
        "norm of the gradient": found.norm,
        "ran on": found.device,
    }
    console.print(values_table(f"Step {found.step} again", facts))
    rows = [
        {
            "micro-batch": str(each.number),
            "images": ", ".join(map(str, each.image_ids)),
            "losses the same": "yes" if each.same else "no",
            "bad losses": str(len(each.bad_terms)),
            "bad gradients": str(len(each.bad_gradients)),
        }
        for each in found.micro_batches
    ]
    console.print(rows_table("Micro-batches", rows))
    for each in found.micro_batches:
        # Losses that are not finite leave no gradient that is: these say where to look only without them.
        kind, names = ("Losses", each.bad_terms) if each.bad_terms else ("Gradients", each.bad_gradients)
        if names:
            text = listing(f"{kind} of micro-batch {each.number} that are not finite", names)
            console.print(text, markup=False, highlight=False)
    return 0 if found.reproduced else 1


def show_plan(plan: TrainingPlan) -> int:
    """Findings before the first step, the cost of the model, and what the run would take."""
    console = Console()
    console.print(plan.start.describe(), markup=False, highlight=False)
    console.print(parts_table(plan.config.name, plan.cost))
    console.print(values_table("Dry run: nothing was written", plan.facts()))
    return 0


def show_overfit(found: Overfit) -> int:
    """How far the batch was learned, and what does not learn; 0 where it was."""
    console = Console()
    facts: dict[str, object] = {"images": found.images, "AP on them": found.ap, "steps": found.steps}
    facts |= {name: f"{first:.4g}, then {last:.4g}" for name, (first, last) in found.losses.items()}
    facts |= {
        f"group {name}": f"learning rate {rate:.2g}, moved by {moved:.2g} of its norm"
        for name, (rate, moved) in found.rates.items()
    }
    facts["norm of the gradient"] = f"{found.norm:.3g} in the middle, clipped to {found.clip_norm:g}"
    title = "The batch was learned" if found.learned else f"The batch was not learned: AP below {GOAL:g}"
    console.print(values_table(title, facts))
    if not found.learned:
        problems = found.problems() or ["nothing stands out: all losses fall, all parts have gradients and move"]
        console.print(listing("What does not learn", problems), markup=False, highlight=False)
    return 0 if found.learned else 1
