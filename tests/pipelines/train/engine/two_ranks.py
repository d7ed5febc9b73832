"""One rank of a data-parallel training, run as a script by test_train_loop.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipelines.recipes.config import RunConfig
from pipelines.train.engine.build import build_loop
from sparse_detr.config_dict import from_dict


def main(folder: Path, rank: int) -> None:
    """Train as `folder/config.json` says; write the history and the sum of all weights."""
    torch.set_num_threads(1)
    config = from_dict(RunConfig, json.loads((folder / "config.json").read_text()))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    loop = build_loop(config, rank=rank, world_size=2)
    history = loop.run()
    total = sum(float(value.double().abs().sum()) for value in loop.model.state_dict().values())
    (folder / f"rank{rank}.json").write_text(json.dumps({"history": history, "total": total}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
