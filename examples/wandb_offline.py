"""Weights & Biases without an account or a network: a callback logs each update's metrics to files.

    pip install wandb
    PYTHONPATH=. python examples/wandb_offline.py [FOLDER] [TOTAL_TIMESTEPS]

Later `wandb sync FOLDER/wandb/offline-run-*` uploads them. Without mode="offline" they are uploaded at once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import wandb
from my_envs import Recall

import expire_span_rl as es


def main(folder: str = "", total_timesteps: str = "20_000") -> None:
    folder = folder or tempfile.mkdtemp(prefix="wandb-")
    settings = {"num_envs": 32, "learning_rate": 2e-3, "seed": 1}
    with wandb.init(project="recall", mode="offline", dir=folder, config=settings) as run:
        model = es.PPO("expire_span", Recall, **settings)

        def log(model: es.PPO) -> None:
            run.log(model.metrics, step=model.num_timesteps)

        model.learn(int(total_timesteps), callback=log)
        model.save(Path(folder) / "policy.safetensors")
        model.close()
        success = model.metrics.get("rollout/success_rate")  # there is none before an episode has ended
        rate = "no episode has ended" if success is None else f"success rate {success:.0%}"
        print(f"{rate} after {model.num_timesteps:,} steps: {run.dir}")


if __name__ == "__main__":
    main(*sys.argv[1:])
