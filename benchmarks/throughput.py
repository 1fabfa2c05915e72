"""What a training step costs, against what it could cost: `python -m benchmarks.throughput`.

    python -m benchmarks.throughput                            # every part; 1,000,000 steps of one episode take a quarter of an hour
    python -m benchmarks.throughput --parts floor contenders
    python -m benchmarks.throughput --parts flat --steps 100000

Parts:

    floor       Training with the defaults after forgetting, beside the bare matrix products of its rollouts and updates.
    contenders  The same beside Transformer-XL with a window of 512, and sb3-contrib's RecurrentPPO of equal width,
                environments, rollout, passes and minibatches.
    flat        One episode: milliseconds per step early and late, and growth of resident memory.
    ragged      An unroll, forward and backward, over a long past of which few memories live, against one over as many
                memories without gaps; and where some rows keep four times as many.

Times are CPU seconds of one thread, so that other work on the machine disturbs them little. What is compared
alternates, and medians are told.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.coverage import current_commit
from benchmarks.learning import resident_gb
from benchmarks.training import trainer_of
from expire_span_rl import cli
from expire_span_rl.building import build
from expire_span_rl.checks import check_at_least, choice
from expire_span_rl.envs import make_vec_env
from expire_span_rl.files import write_atomically
from expire_span_rl.policies import ActorCritic, PolicyConfig, load_policy
from expire_span_rl.policies.memory.state import LayerMemory, Memory
from expire_span_rl.policies.settings import ExpireSpanConfig, TransformerConfig
from expire_span_rl.settings import resolve

PARTS = ("floor", "contenders", "flat", "ragged")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
WINDOW = 10_000  # steps of `flat` whose mean is told
SIZES = ((64, 2, 4, 32), (256, 4, 8, 8))  # width, layers, heads and environments of `ragged`
ROLLOUT = 64  # steps there
LIVE = 0.05  # share of the past that lives


@dataclass(frozen=True)
class ThroughputConfig:
    parts: tuple[str, ...] = PARTS
    """What is measured."""
    policy: str = "pretrained/corridor-expire_span.safetensors"
    """Policy file or run directory: an Expire-Span policy that has forgotten."""
    updates: int = 12
    """Updates that are timed, per contender."""
    warm_up: int = 20
    """Updates before that, until episodes of all lengths are under way."""
    steps: int = 1_000_000
    """Steps of the one episode."""
    past: tuple[int, ...] = (1024, 4096, 16_384)
    """Steps of past of which a twentieth lives."""
    repeats: int = 9
    """Times that an unroll is timed."""
    out: str = "benchmarks/results/throughput.json"
    """File of the figures."""

    def __post_init__(self):
        for part in self.parts:
            choice("--parts", part, PARTS)
        check_at_least(self, updates=1, warm_up=1, steps=3 * WINDOW, repeats=1)
        if not self.past or min(self.past) < 64:
            raise ValueError(f"--past: expected lengths of at least 64, got {self.past}")


def main() -> None:
    config = cli.parse(ThroughputConfig, sys.argv[1:], "What a training step costs, against what it could cost.")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"commit": current_commit()}
    for part in config.parts:
        figures[part] = MEASURES[part](config)
        _show(part, figures[part])
    write_atomically(config.out, (json.dumps(figures, indent=1) + "\n").encode())
    print(f"figures: {config.out}")


def _show(part: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=part)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.4g}" for value in row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def cpu_seconds(function: Callable[[], Any]) -> float:
    """CPU seconds that a call takes."""
    began = time.process_time()
    function()
    return time.process_time() - began


# Floor


class Products(TorchDispatchMode):
    """Counts matrix products by operator and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, tuple[tuple[int, ...], ...]]] = Counter()
        self._calls: list[tuple[Callable[..., Any], list[torch.Tensor], int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.seen[name, tuple(tuple(tensor.shape) for tensor in args)] += 1
        return func(*args, **(kwargs or {}))

    def prepare(self) -> None:
        """Makes random numbers of all shapes, for `repeat`."""
        self._calls = [
            (getattr(torch, name), [torch.randn(shape) for shape in shapes], count)
            for (name, shapes), count in self.seen.items()
        ]

    def repeat(self) -> None:
        """All products once more."""
        for function, tensors, count in self._calls:
            for _ in range(count):
                function(*tensors)


def floor(config: ThroughputConfig) -> list[dict[str, Any]]:
    """Of PPO and IMPALA: steps per CPU second, and those of the bare matrix products."""
    rows = []
    for agent in ("ppo", "impala"):
        trainer = trainer_of(config.policy, ["--agent", agent, "--learning-rate", "0"])
        for _ in range(config.warm_up):
            trainer.update()
        with Products() as products:
            trainer.update()
        products.prepare()
        whole, bare = [], []
        for _ in range(config.updates):
            whole.append(cpu_seconds(trainer.update))
            bare.append(cpu_seconds(products.repeat))
        steps = trainer.rollout_size
        rows.append({
            "agent": agent,
            "live_memories": float(np.mean(trainer.collector.live["mean"])),
            "steps_per_second": steps / float(np.median(whole)),
            "bare_products": steps / float(np.median(bare)),
            "ratio": float(np.median(bare) / np.median(whole)),
        })  # fmt: skip
    return rows


# Contenders


def contenders(config: ThroughputConfig) -> list[dict[str, Any]]:
    """Steps per CPU second of trainings in turns."""
    ours = trainer_of(config.policy, ["--agent", "ppo", "--learning-rate", "0"])
    same = {"env": "Corridor-v0", "learning_rate": 0.0, "total_timesteps": 10**9}
    window = build(resolve("transformer_xl", window=512, **same)).trainer
    recurrent = build(resolve(agent="sb3-recurrent-ppo", **_like(ours, same))).trainer
    trainers = {"expire_span": ours, "transformer_xl, window 512": window, "sb3-recurrent-ppo": recurrent}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for update in range(config.warm_up + config.updates):
        for name, trainer in trainers.items():
            if name.startswith("sb3") and config.warm_up > update > 1:
                continue  # its speed does not depend on what is remembered
            took = cpu_seconds(trainer.update)
            if update >= config.warm_up:
                seconds[name].append(took)
    speed = {name: trainers[name].rollout_size / float(np.median(took)) for name, took in seconds.items()}
    first = speed["expire_span"]
    return [{"contender": name, "steps_per_second": each, "times_slower": first / each} for name, each in speed.items()]


def _like(ours: Any, same: dict[str, Any]) -> dict[str, Any]:
    """Settings of the baseline with which it does as much as our trainer."""
    learner = ours.agent.config
    batch = ours.rollout_size // learner.num_minibatches
    return {
        **same, "num_envs": ours.env.num_envs, "num_steps": learner.num_steps, "batch_size": batch,
        "n_epochs": learner.update_epochs, "width": ours.policy.config.core.width,
    }  # fmt: skip


# Flat


@torch.no_grad()
def flat(config: ThroughputConfig) -> list[dict[str, Any]]:
    """One episode in one environment, for as long as asked."""
    policy, _ = load_policy(config.policy)
    env = make_vec_env("Corridor-v0", 1, min_length=config.steps, max_length=config.steps, max_steps=10**9)
    observation, _ = env.reset(seed=1)
    acting, start = policy.begin(policy.initial_memory(1), 64), torch.ones(1, dtype=torch.bool)
    windows, resident, live, began = {}, {}, 0, time.process_time()
    for step in range(1, config.steps + 1):
        if acting.full:
            acting = policy.begin(acting.memory(), 64, acting)
        entries = {name: torch.as_tensor(entry) for name, entry in observation.items()}
        params, _ = policy.step(entries, acting, start)
        live = max(live, int(acting.live.max()) if acting.live is not None else 0)
        observation, _, ended, _, _ = env.step(policy.actions.to_env(policy.actions.mode(params)))
        start = torch.as_tensor(ended)
        if step in (1000, 1000 + WINDOW, config.steps - WINDOW, config.steps):
            windows[step], resident[step] = time.process_time() - began, resident_gb()
    early = (windows[1000 + WINDOW] - windows[1000]) / WINDOW
    late = (windows[config.steps] - windows[config.steps - WINDOW]) / WINDOW
    growth = 1000 * (resident[config.steps] - resident[1000 + WINDOW])
    return [{
        "steps": config.steps, "ms_per_step_early": 1000 * early, "ms_per_step_late": 1000 * late, "ratio": late / early,
        "growth_of_resident_mb": growth, "most_live_memories": live,
    }]  # fmt: skip


# Ragged


def ragged(config: ThroughputConfig) -> list[dict[str, Any]]:
    """CPU milliseconds of an unroll, forward and backward, and how many times those of one without gaps."""
    rows, actions = [], {"kind": "discrete", "n": 4}
    for width, layers, heads, batch in SIZES:
        core = TransformerConfig(width=width, num_layers=layers, num_heads=heads)
        for past in config.past:
            kind = ExpireSpanConfig(initial_limit=4 * past)
            policy = ActorCritic(
                PolicyConfig({"x": {"kind": "vector", "shape": [8]}}, actions, "expire_span", kind, core)
            )
            number = max(1, round(LIVE * past))
            few = batch // 8
            uneven = torch.full((batch,), number)
            uneven[:few] *= 4
            memories = {
                "dense": _memory(policy, torch.full((batch,), number), number),
                "sparse": _memory(policy, torch.full((batch,), number), past),
                "uneven": _memory(policy, uneven, past),
            }
            took: dict[str, list[float]] = {name: [] for name in memories}
            for repeat in range(config.repeats + 1):
                for name, memory in memories.items():
                    seconds = cpu_seconds(partial(_unroll, policy, memory, batch))
                    if repeat:  # the first warms up
                        took[name].append(seconds)
            dense, sparse, other = (1000 * float(np.median(took[name])) for name in ("dense", "sparse", "uneven"))
            rows.append({
                "width_layers_batch": f"{width}, {layers}, {batch}", "past": past, "live": number, "dense_ms": dense,
                "sparse_ms": sparse, "ratio": sparse / dense, "uneven_ms": other, "uneven_ratio": other / dense,
            })  # fmt: skip
    return rows


def _memory(policy: Any, live: torch.Tensor, past: int) -> Memory:
    """Memories of an episode of `past` steps, of which `live` [B] live, spread evenly."""
    batch, size, width = len(live), int(live.max()), policy.config.core.width
    place = torch.arange(size)
    age = (place[None] * (past / live[:, None])).int() + 1  # the youngest first
    alive = (place[None] < live[:, None]).flip(1)
    birth = (past - age).flip(1).int()
    layers = [LayerMemory(torch.randn(batch, size, width), birth, alive) for _ in policy.core.layers]
    return Memory(tuple(layers), torch.full((batch,), past, dtype=torch.int32), torch.zeros(batch, 0))


def _unroll(policy: Any, memory: Memory, batch: int) -> None:
    x = {"x": torch.randn(ROLLOUT, batch, 8)}
    out = policy.unroll(x, memory, torch.zeros(ROLLOUT, batch, dtype=torch.bool))
    (out.logits.square().mean() + out.values.square().mean()).backward()


MEASURES: dict[str, Callable[[ThroughputConfig], list[dict[str, Any]]]] = {
    "floor": floor, "contenders": contenders, "flat": flat, "ragged": ragged,
}  # fmt: skip

if __name__ == "__main__":
    cli.run(main)
