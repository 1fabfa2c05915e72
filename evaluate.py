"""Evaluates saved policies on the same episodes: success, return, memory use and speed, as a table, JSON and a plot.

Every environment plays a fixed number of episodes, so that short ones are not over-represented, and every policy plays
the same ones: environment i of a batch has the seed + i, which no training has (`train_rl.environment_seed`).
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from expire_span_rl import cli
from expire_span_rl.agents.episodes import quotients, ratio_parts
from expire_span_rl.envs import make_vec_env
from expire_span_rl.policies import ActorCritic, as_tensors, load_policy, observation_spec, sample
from expire_span_rl.policies.io import write_atomically

HORIZON = 32  # steps between two compactions of the memory; results do not depend on it
FIRST_SEED = 10**12  # evaluation seeds begin here; training's are below, or beyond 2^61
ALWAYS = {
    "path", "memory", "agent", "parameters", "episodes", "success_rate", "success_rate_ci95", "mean_return",
    "mean_episode_length", "live_memories_mean", "live_memories_max", "live_memories_per_episode", "live_memories_at_end",
    "memory_bytes", "acting_steps_per_second", "buckets",
}  # fmt: skip
"""A policy's figures in every report; `memory_efficiency`, too, is None where there is no oracle."""
BUCKETS = 4  # episodes are also reported by quarters of the largest difficulty


@dataclass(frozen=True)
class EvaluateConfig:
    policies: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Policy files or run directories."""
    env: str = ""
    """Environment id. Default: the one that the first policy was trained in."""
    env_kwargs: str = "{}"
    """Keyword arguments of the environment, a JSON object, over those of the first policy's training."""
    wrap: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Makes long trajectories of the episodes: stretch=10, episodes=4, fresh_episodes=4, occlude=5-9/20.
    Default: those of the first policy's training; none: no wrap."""
    episodes: int = 1000
    """Episodes that each policy plays."""
    num_envs: int = 100
    """Environments stepped together."""
    seed: int = 0
    """Which episodes; the same for every policy."""
    stochastic: bool = False
    """Sample actions. Default: the most likely one."""
    json: str = ""
    """Write the results to this file."""
    plot: str = ""
    """Draw the results into this file (.png, .svg or .pdf)."""
    torch_threads: int = 2
    """CPU threads of PyTorch."""
    device: str = "cpu"
    """cpu, cuda, or auto: a GPU where there is one."""

    def __post_init__(self):
        if not self.policies:
            raise ValueError("policies: expected at least one policy file or run directory, got none")
        cli.check_at_least(self, episodes=1, num_envs=1, torch_threads=1)
        cli.check_seed(self)
        if self.plot and Path(self.plot).suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--plot: expected a name that ends in .png, .svg or .pdf, got {self.plot!r}")
        for flag in ("json", "plot"):
            path = getattr(self, flag)
            if path and not Path(path).absolute().parent.is_dir():
                raise ValueError(f"--{flag}: expected a folder that exists, got {path!r}")
            if path and Path(path).is_dir():
                raise ValueError(f"--{flag}: expected a file, {path!r} is a folder")


def main() -> None:
    config = cli.parse(EvaluateConfig, sys.argv[1:], "Evaluates saved policies and compares them.")
    torch.set_num_threads(config.torch_threads)
    device = cli.device(config.device)
    loaded = [load_policy(path, device) for path in config.policies]
    env_id, trained = cli.environment_of(config.env, loaded[0][1], config.policies[0])
    kwargs = {**trained, **cli.json_object("--env-kwargs", config.env_kwargs)}
    if config.wrap:
        kwargs["wraps"] = list(config.wrap)
    for path, (policy, _) in zip(config.policies, loaded):
        check_spaces(path, policy, env_id, kwargs)
    results = []
    for path, (policy, told) in zip(config.policies, loaded):
        torch.manual_seed(config.seed)  # each policy's actions are its own, whatever stands before it
        with tqdm(total=config.episodes, unit="episode", desc=path, leave=False, disable=None) as bar:
            result = evaluate(
                policy, env_id, kwargs, config.episodes, config.num_envs, config.seed, not config.stochastic, bar.update
            )
        results.append({"path": str(path), "memory": policy.config.memory, "agent": told.get("agent"), **result})
    _tell_all_of_success(results)
    report = {"env": env_id, "env_kwargs": kwargs, "seed": config.seed, "policies": results}
    print_tables(report)
    if config.json:
        write_atomically(config.json, (json.dumps(report, indent=2) + "\n").encode())
        print(f"results: {config.json}")
    if config.plot:
        plot(report, Path(config.plot))
        print(f"plot: {config.plot}")


def _tell_all_of_success(results: Sequence[dict[str, Any]]) -> None:
    """Where an environment told some policies' episodes of success, in place, the others' did not succeed."""
    every = [figures for result in results for figures in (result, *result["buckets"])]
    if any(figures["success_rate"] is not None for figures in every):
        for figures in every:
            if figures["success_rate"] is None:
                figures |= {"success_rate": 0.0, "success_rate_ci95": list(wilson(0, figures["episodes"]))}


def check_spaces(path: str, policy: ActorCritic, env_id: str, kwargs: Mapping[str, Any]) -> None:
    """Raises UsageError, one line, unless the policy can see and act in the environment."""
    env = make_vec_env(env_id, 1, **kwargs)
    theirs = {"observation": observation_spec(env.single_observation_space), "actions": int(env.single_action_space.n)}
    ours = {"observation": policy.config.observation, "actions": policy.config.num_actions}
    env.close()
    for name, given in theirs.items():
        wanted, given = (json.loads(json.dumps(value)) for value in (ours[name], given))
        if isinstance(given, dict):  # only the parts that differ
            parts = sorted(part for part in given.keys() | wanted.keys() if given.get(part) != wanted.get(part))
            wanted, given = ({part: value[part] for part in parts if part in value} for value in (wanted, given))
        if wanted != given:
            raise cli.UsageError(f"{path}: expected an environment with {name} {wanted}, {env_id} has {given}")


@torch.no_grad()
def evaluate(
    policy: ActorCritic,
    env_id: str,
    env_kwargs: Mapping[str, Any],
    episodes: int,
    num_envs: int = 100,
    seed: int = 0,
    deterministic: bool = True,
    progress: Any = lambda count: None,
) -> dict[str, Any]:
    """Plays `episodes` episodes and returns their figures, JSON-able, with the keys that README.md lists, and what the
    environment itself counts (`metadata["ratios"]`).

    Figures of live memories are means (and maxima) over all steps of these episodes, the step's own memory included.
    """
    batch = min(num_envs, episodes)
    env = make_vec_env(env_id, batch, **env_kwargs)
    key, ratios = env.metadata.get("difficulty_key"), {"memory_efficiency": None, **env.metadata.get("ratios", {})}
    quota = np.full(batch, episodes // batch)
    quota[: episodes % batch] += 1
    observation, _ = env.reset(seed=FIRST_SEED + seed * 1_000_003)
    acting = policy.begin(policy.initial_memory(batch), HORIZON)
    start = np.ones(batch, bool)
    returns, lengths = np.zeros(batch), np.zeros(batch, np.int64)
    played: list[dict[str, Any]] = []
    live_sum, live_max, steps, acted, seconds = 0.0, 0, 0, 0, 0.0
    episode_live = np.zeros(batch)
    while quota.any():
        began = time.perf_counter()
        if acting.full:
            acting = policy.begin(acting.memory(), HORIZON)
        logits, _ = policy.step(
            as_tensors(observation, policy.device), acting, torch.as_tensor(start, device=policy.device)
        )
        actions = (logits.argmax(-1) if deterministic else sample(logits)).cpu().numpy()
        seconds += time.perf_counter() - began
        acted += batch
        active = quota > 0
        if acting.live is not None:
            live = acting.live.cpu().numpy()  # [B,L]
            live_sum, live_max = live_sum + live[active].sum(0), np.maximum(live_max, live[active].max(0))
            episode_live += live.mean(1)
        steps += int(active.sum())
        observation, reward, terminated, truncated, infos = env.step(actions)
        returns, lengths = returns + reward, lengths + 1
        start = terminated | truncated
        for row in np.flatnonzero(start & active):
            told = infos.get("final_info", {})
            episode = {"return": returns[row], "steps": int(lengths[row]), "live": episode_live[row] / lengths[row]}
            episode["live_last"] = live[row].mean() if acting.live is not None else None
            episode["success"] = bool(told["is_success"][row]) if "is_success" in told else None
            episode["told"] = {part: told[part][row].item() for part in ratio_parts(ratios)}
            episode["difficulty"] = float(told[key][row]) if key else float(lengths[row])
            played.append(episode)
            progress(1)
        quota[start & active] -= 1
        returns[start], lengths[start], episode_live[start] = 0, 0, 0
    memory = acting.memory()
    env.close()
    stores = acting.live is not None
    if any(e["success"] is not None for e in played):  # where some episodes tell, the others did not succeed
        for episode in played:
            episode["success"] = bool(episode["success"])
    largest = max(e["difficulty"] for e in played)
    edges = [largest * i / BUCKETS for i in range(BUCKETS + 1)]
    buckets = []
    for low, high in itertools.pairwise(edges):
        inside = [e for e in played if low < e["difficulty"] <= high]
        if inside:
            bounds = {"by": key or "steps", "low": math.floor(low) + 1, "high": math.floor(high)}
            buckets.append({**bounds, **_figures(inside, stores, ratios)})
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        **_figures(played, stores, ratios),
        "live_memories_mean": (live_sum / steps).tolist() if stores else [],
        "live_memories_max": live_max.tolist() if stores else [],
        "memory_bytes": float(live_sum / steps @ memory.slot_bytes()) if stores else float(memory.bytes()[0]),
        "acting_steps_per_second": acted / seconds,
        "buckets": buckets,
    }


def _figures(played: Sequence[Mapping[str, Any]], stores: bool, ratios: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of some episodes. live_memories_at_end: mean over layers at the last step of an episode."""
    out: dict[str, Any] = {"episodes": len(played), "success_rate": None, "success_rate_ci95": None}
    if played[0]["success"] is not None:
        successes = sum(e["success"] for e in played)
        out["success_rate"] = successes / len(played)
        out["success_rate_ci95"] = list(wilson(successes, len(played)))
    out["mean_return"] = float(np.mean([e["return"] for e in played]))
    out["mean_episode_length"] = float(np.mean([e["steps"] for e in played]))
    out |= quotients([e["told"] for e in played], ratios)
    if stores:
        out["live_memories_per_episode"] = float(np.mean([e["live"] for e in played]))
        out["live_memories_at_end"] = float(np.mean([e["live_last"] for e in played]))
    return out


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval (Wilson, 1927) of a proportion; 95% for z = 1.96."""
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # Where all or none succeeded one end is exactly the rate itself, whatever rounding does.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == trials else centre + half)


def print_tables(report: Mapping[str, Any]) -> None:
    """The comparison on stdout."""
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    told = f"{report['env']} {json.dumps(report['env_kwargs'])}" if report["env_kwargs"] else report["env"]
    table = Table(title=f"{told}, {report['policies'][0]['episodes']:,} episodes", title_justify="left")
    table.add_column("policy", overflow="fold")
    for name in (
        "memory",
        "success [95%]",
        "return",
        "steps",
        "live memories\nper layer",
        "largest",
        "bytes",
        "acting\nsteps/s",
    ):
        table.add_column(name, justify="left" if name == "memory" else "right")
    for p in report["policies"]:
        table.add_row(
            p["path"], p["memory"], _success(p), f"{p['mean_return']:.3f}", f"{p['mean_episode_length']:.1f}",
            " ".join(f"{x:.1f}" for x in p["live_memories_mean"]) or "-",
            " ".join(str(x) for x in p["live_memories_max"]) or "-",
            f"{p['memory_bytes']:,.0f}", f"{p['acting_steps_per_second']:,.0f}",
        )  # fmt: skip
    console.print(table)
    by = Table(title="by length of the episode" if report["policies"][0]["buckets"][0]["by"] == "steps" else
               f"by {report['policies'][0]['buckets'][0]['by']}", title_justify="left")  # fmt: skip
    for name in ("policy", "from-to", "episodes", "success [95%]", "return", "live memories", "at the end"):
        by.add_column(name, justify="left" if name == "policy" else "right", overflow="fold")
    for p in report["policies"]:
        for i, b in enumerate(p["buckets"]):
            by.add_row(
                p["path"] if i == 0 else "", f"{b['low']}-{b['high']}", str(b["episodes"]), _success(b),
                f"{b['mean_return']:.3f}", _number(b.get("live_memories_per_episode")), _number(b.get("live_memories_at_end")),
            )  # fmt: skip
    console.print(by)
    for p in report["policies"]:
        for name, value in p.items():  # what the environment counts besides (see `ratios` in envs/core.py)
            if name in ALWAYS or (name == "memory_efficiency" and value is None):
                continue
            parts = value.items() if isinstance(value, Mapping) else [("all", value)]
            shown = "  ".join(f"{label}: {part:.3f}" for label, part in parts if part is not None)
            console.print(f"{p['path']}, {name.replace('_', ' ')}:  {shown or 'nothing counted'}", soft_wrap=True)


def _success(figures: Mapping[str, Any]) -> str:
    if figures["success_rate"] is None:
        return "-"
    low, high = figures["success_rate_ci95"]
    return f"{figures['success_rate']:.1%} [{low:.1%}, {high:.1%}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Success (or return) and live memories by difficulty, one line per policy, into `path`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    policies = report["policies"]
    with_success = policies[0]["success_rate"] is not None
    for i, p in enumerate(policies):
        style = {"marker": "os^Dv"[i % 5], "markersize": max(4, 9 - 2 * i), "linestyle": ("-", "--", ":", "-.")[i % 4]}
        label = f"{p['memory']} ({Path(p['path']).stem if Path(p['path']).suffix else Path(p['path']).name})"
        x = [(b["low"] + b["high"]) / 2 for b in p["buckets"]]
        y = [b["success_rate"] if with_success else b["mean_return"] for b in p["buckets"]]
        (line,) = left.plot(x, y, label=label, **style)
        if with_success:
            low, high = zip(*(b["success_rate_ci95"] for b in p["buckets"]))
            left.fill_between(x, low, high, alpha=0.15, color=line.get_color())
        if p["live_memories_mean"]:  # a recurrent state is no number of memories
            live = [b["live_memories_per_episode"] for b in p["buckets"]]
            right.plot(x, live, color=line.get_color(), label=label, **style)
    by = policies[0]["buckets"][0]["by"]
    left.set(xlabel=f"{by} of the episode", ylabel="success rate" if with_success else "mean return")
    if with_success:
        left.set_ylim(-0.02, 1.05)
    right.set(xlabel=f"{by} of the episode", ylabel="live memories (mean over steps and layers)", yscale="log")
    left.legend(fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{report['env']}: what is remembered, and what it takes (bands: 95% intervals)", fontsize=11)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
