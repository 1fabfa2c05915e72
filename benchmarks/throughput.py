"""What a training step costs, against what it could cost: `python -m benchmarks.throughput`.

    python -m benchmarks.throughput                     # every part; the million steps take a quarter of an hour
    python -m benchmarks.throughput --parts floor contenders
    python -m benchmarks.throughput --parts flat --steps 100000

part         what is measured
floor        training with the defaults after forgetting, beside the bare matrix products of its rollouts and updates
contenders   the same beside Transformer-XL with a window of 512, and sb3-contrib's RecurrentPPO of equal width,
             environments, rollout, passes and minibatches
flat         one episode: milliseconds per step early and late, and growth of resident memory
ragged       an unroll, forward and backward, over a long past of which few memories live, against one over as many
             memories without gaps; and where some rows keep four times as many
kinds        trained policies of several memory kinds: success, milliseconds per update and per step of acting, and
             memory, on the CPU and on a GPU if there is one

Times are CPU seconds of one thread, so that other work on the machine has little effect. What is compared alternates,
and the results are medians.
"""

from __future__ import annotations

import json
import sys
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

from benchmarks.clock import Clock, seconds_of
from benchmarks.coverage import current_commit
from benchmarks.learning import resident_gb
from benchmarks.throughput_kinds import POLICIES, kinds
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

PARTS = ("floor", "contenders", "flat", "ragged", "kinds")
PRODUCTS = ("mm", "bmm", "addmm", "baddbmm")
WINDOW = 10_000  # steps of `flat` over which a mean is taken
SIZES = ((64, 2, 4, 32), (256, 4, 8, 8))  # width, layers, heads and environments of `ragged`
ROLLOUT = 64  # steps of an unroll of `ragged`
LIVE_SHARE = 0.05  # of the past


@dataclass(frozen=True)
class ThroughputConfig:
    parts: tuple[str, ...] = PARTS
    """Parts to measure."""
    policy: str = "pretrained/corridor-expire_span.safetensors"
    """Policy file or run directory: an Expire-Span policy that has forgotten."""
    policies: tuple[str, ...] = POLICIES
    """Policy files or run directories for `kinds`."""
    updates: int = 12
    """Updates that are timed, for each contender."""
    warm_up: int = 20
    """Updates before that, until episodes of all lengths have begun."""
    steps: int = 1_000_000
    """Steps of the one episode of `flat`."""
    past: tuple[int, ...] = (1024, 4096, 16_384)
    """Steps of the past in `ragged`, of which a twentieth is live."""
    repeats: int = 9
    """How often an unroll is timed."""
    out: str = "benchmarks/results/throughput.json"
    """JSON file of the results."""

    def __post_init__(self):
        for part in self.parts:
            choice("--parts", part, PARTS)
        check_at_least(self, updates=1, warm_up=1, steps=3 * WINDOW, repeats=1)
        if not self.past or min(self.past) < 64:
            raise ValueError(f"--past: expected lengths of at least 64, got {self.past}")


def main() -> None:
    config = cli.parse(ThroughputConfig, sys.argv[1:], "What a training step costs, against what it could cost.")
    torch.set_num_threads(1)
    results: dict[str, Any] = {"commit": current_commit()}
    for part in config.parts:
        results[part] = MEASUREMENTS[part](config)
        write_atomically(config.out, (json.dumps(results, indent=1) + "\n").encode())
        _print_table(part, results[part])
    print(f"results: {config.out}")


def _cell_text(value: str | float | None) -> str:
    """A number with four digits, "-" for none."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,.4g}"


def _print_table(part: str, rows: list[dict[str, Any]]) -> None:
    table = Table(title=part)
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*map(_cell_text, row.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


# Floor


class Products(TorchDispatchMode):
    """Counts matrix products by operator and shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, tuple[tuple[int, ...], ...]]] = Counter()
        self._calls: list[tuple[Callable[..., Any], list[torch.Tensor], int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in PRODUCTS:
            self.counts[name, tuple(tuple(tensor.shape) for tensor in args)] += 1
        return func(*args, **(kwargs or {}))

    def prepare(self) -> None:
        """Creates random tensors of all shapes, for `repeat`."""
        self._calls = [
            (getattr(torch, name), [torch.randn(shape) for shape in shapes], count)
            for (name, shapes), count in self.counts.items()
        ]

    def repeat(self) -> None:
        """Computes all products once more."""
        for function, tensors, count in self._calls:
            for _ in range(count):
                function(*tensors)


def floor(config: ThroughputConfig) -> list[dict[str, Any]]:
    """Steps per CPU second of PPO and IMPALA, and of their matrix products alone."""
    rows = []
    for agent in ("ppo", "impala"):
        trainer = trainer_of(config.policy, ["--agent", agent, "--learning-rate", "0"])
        for _ in range(config.warm_up):
            trainer.update()
        with Products() as products:
            trainer.update()
        products.prepare()
        update_seconds = []
        product_seconds = []
        for _ in range(config.updates):
            update_seconds.append(seconds_of(trainer.update))
            product_seconds.append(seconds_of(products.repeat))
        steps = trainer.rollout_size
        rows.append({
            "agent": agent,
            "live_memories": float(np.mean(trainer.collector.live["mean"])),
            "steps_per_second": steps / float(np.median(update_seconds)),
            "bare_products": steps / float(np.median(product_seconds)),
            "ratio": float(np.median(product_seconds) / np.median(update_seconds)),
        })  # fmt: skip
    return rows


# Contenders


def contenders(config: ThroughputConfig) -> list[dict[str, Any]]:
    """Steps per CPU second of several trainings, which alternate."""
    expire_span = trainer_of(config.policy, ["--agent", "ppo", "--learning-rate", "0"])
    settings = {"env": "Corridor-v0", "learning_rate": 0.0, "total_timesteps": 10**9}
    window = build(resolve("transformer_xl", window=512, **settings)).trainer
    recurrent = build(resolve(agent="sb3-recurrent-ppo", **_baseline_settings(expire_span, settings))).trainer
    trainers = {"expire_span": expire_span, "transformer_xl, window 512": window, "sb3-recurrent-ppo": recurrent}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for update in range(config.warm_up + config.updates):
        for name, trainer in trainers.items():
            if name.startswith("sb3") and config.warm_up > update > 1:
                continue  # its speed does not depend on its memory, so that it needs less warming up
            update_seconds = seconds_of(trainer.update)
            if update >= config.warm_up:
                seconds[name].append(update_seconds)
    speeds = {name: trainers[name].rollout_size / float(np.median(times)) for name, times in seconds.items()}
    reference = speeds["expire_span"]
    return [
        {"contender": name, "steps_per_second": speed, "times_slower": reference / speed}
        for name, speed in speeds.items()
    ]


def _baseline_settings(trainer: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with which the baseline does as much work as our trainer."""
    learner = trainer.agent.config
    return {
        **settings,
        "num_envs": trainer.env.num_envs,
        "num_steps": learner.num_steps,
        "batch_size": trainer.rollout_size // learner.num_minibatches,
        "n_epochs": learner.update_epochs,
        "width": trainer.policy.config.core.width,
    }


# Flat


@torch.no_grad()
def flat(config: ThroughputConfig) -> list[dict[str, Any]]:
    """One episode of `steps` steps in one environment."""
    policy, _ = load_policy(config.policy)
    env = make_vec_env("Corridor-v0", 1, min_length=config.steps, max_length=config.steps, max_steps=10**9)
    observation, _ = env.reset(seed=1)
    acting = policy.begin(policy.initial_memory(1), 64)
    start = torch.ones(1, dtype=torch.bool)
    max_live = 0
    seconds = {}  # at some steps
    resident = {}  # GB, at some steps
    clock = Clock("cpu")
    for step in range(1, config.steps + 1):
        if acting.full:
            acting = policy.begin(acting.memory(), 64, acting)
        entries = {name: torch.as_tensor(entry) for name, entry in observation.items()}
        params, _ = policy.step(entries, acting, start)
        max_live = max(max_live, int(acting.live.max()) if acting.live is not None else 0)
        observation, _, terminated, _, _ = env.step(policy.actions.to_env(policy.actions.mode(params)))
        start = torch.as_tensor(terminated)
        if step in (1000, 1000 + WINDOW, config.steps - WINDOW, config.steps):
            seconds[step] = clock.seconds()
            resident[step] = resident_gb()
    early_seconds = (seconds[1000 + WINDOW] - seconds[1000]) / WINDOW
    late_seconds = (seconds[config.steps] - seconds[config.steps - WINDOW]) / WINDOW
    growth = 1000 * (resident[config.steps] - resident[1000 + WINDOW])
    return [
        {
            "steps": config.steps,
            "ms_per_step_early": 1000 * early_seconds,
            "ms_per_step_late": 1000 * late_seconds,
            "ratio": late_seconds / early_seconds,
            "growth_of_resident_mb": growth,
            "most_live_memories": max_live,
        }
    ]


# Ragged


def ragged(config: ThroughputConfig) -> list[dict[str, Any]]:
    """CPU milliseconds of an unroll, forward and backward, over three memories, and their ratios to the dense one.

    Dense: all of the past is live. Sparse: as many memories, spread over a longer past. Uneven: sparse, and an eighth
    of the rows has four times as many.
    """
    rows = []
    for width, layers, heads, batch in SIZES:
        core = TransformerConfig(width=width, num_layers=layers, num_heads=heads)
        for past in config.past:
            policy = ActorCritic(
                PolicyConfig(
                    observation={"x": {"kind": "vector", "shape": [8]}},
                    actions={"kind": "discrete", "n": 4},
                    memory="expire_span",
                    memory_config=ExpireSpanConfig(initial_limit=4 * past),
                    core=core,
                )
            )
            live = max(1, round(LIVE_SHARE * past))
            even = torch.full((batch,), live)
            uneven = even.clone()
            uneven[: batch // 8] *= 4
            milliseconds = _unroll_milliseconds(
                policy,
                {
                    "dense": _memory(policy, even, live),
                    "sparse": _memory(policy, even, past),
                    "uneven": _memory(policy, uneven, past),
                },
                config.repeats,
            )
            rows.append(
                {
                    "width_layers_batch": f"{width}, {layers}, {batch}",
                    "past": past,
                    "live": live,
                    "dense_ms": milliseconds["dense"],
                    "sparse_ms": milliseconds["sparse"],
                    "ratio": milliseconds["sparse"] / milliseconds["dense"],
                    "uneven_ms": milliseconds["uneven"],
                    "uneven_ratio": milliseconds["uneven"] / milliseconds["dense"],
                }
            )
    return rows


def _unroll_milliseconds(policy: Any, memories: dict[str, Memory], repeats: int) -> dict[str, float]:
    """Median CPU milliseconds of an unroll over each memory. They alternate."""
    seconds: dict[str, list[float]] = {name: [] for name in memories}
    for repeat in range(repeats + 1):
        for name, memory in memories.items():
            unroll_seconds = seconds_of(partial(_unroll, policy, memory))
            if repeat:  # the first one warms up
                seconds[name].append(unroll_seconds)
    return {name: 1000 * float(np.median(times)) for name, times in seconds.items()}


def _memory(policy: Any, live: torch.Tensor, past: int) -> Memory:
    """Memories of an episode of `past` steps, of which `live` [B] are live, spread evenly."""
    batch = len(live)
    size = int(live.max())
    width = policy.config.core.width
    place = torch.arange(size)
    age = (place[None] * (past / live[:, None])).int() + 1  # the youngest first
    alive = (place[None] < live[:, None]).flip(1)
    birth = (past - age).flip(1).int()
    layers = [LayerMemory(torch.randn(batch, size, width), birth, alive) for _ in policy.core.layers]
    return Memory(tuple(layers), torch.full((batch,), past, dtype=torch.int32), torch.zeros(batch, 0))


def _unroll(policy: Any, memory: Memory) -> None:
    batch = len(memory.time)
    x = {"x": torch.randn(ROLLOUT, batch, 8)}
    out = policy.unroll(x, memory, torch.zeros(ROLLOUT, batch, dtype=torch.bool))
    (out.logits.square().mean() + out.values.square().mean()).backward()


MEASUREMENTS: dict[str, Callable[[ThroughputConfig], list[dict[str, Any]]]] = {
    "floor": floor,
    "contenders": contenders,
    "flat": flat,
    "ragged": ragged,
    "kinds": lambda config: kinds(config.policies, config.warm_up, config.updates),
}

if __name__ == "__main__":
    cli.run(main)
