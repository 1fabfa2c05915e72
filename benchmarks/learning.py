"""Learning on several seeds: how soon, how steadily, and how many memories are live at the end.

    python -m benchmarks.learning --env Corridor-v0 --memory expire_span --seeds 5

Every flag of train_rl.py may follow. Seeds whose results are there are not trained again. Each seed trains with one
thread, `--jobs` of them at a time, so that timings are of one core. Every `--eval-every` steps the policy plays 1,000
new episodes with the environment's own (evaluation) settings, and at the end also hard ones. Two policies are reported:
the last one, and the one that the training keeps (about the fewest live memories at the success target).
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.workers import WorkersConfig, check_no_actors, results_of
from expire_span_rl import cli
from expire_span_rl.building import build
from expire_span_rl.cli.settings import flag_names, parse_config
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import save_policy
from expire_span_rl.policies.io import write_atomically
from expire_span_rl.settings import Settings

SOLVED = 0.95
CURVE = {
    "rollout/success_rate": "success",
    "rollout/hard_score": "success on the hardest quarter",
    "memory/live_mean": "live memories per layer",
    "memory/pressure": "pressure",
}
CURVE_STRIDE = 4  # updates between two points


@dataclass(frozen=True)
class BenchmarkConfig(WorkersConfig):
    seeds: int = 5
    """Seeds 1, 2, ..., each a training of its own."""
    first_seed: int = 1
    """The first seed."""
    jobs: int = 2
    """Trainings at a time, one thread each."""
    eval_every: int = 200_000
    """Environment steps between two evaluations."""
    eval_episodes: int = 1000
    """Episodes of an evaluation."""
    hard_env_kwargs: str = ""
    """Keyword arguments that make episodes hard, a JSON object. They replace the environment's. Default for
    Corridor-v0: only the longest corridors."""
    out: str = ""
    """JSON results. Default: benchmarks/results/learning-<env>-<memory>.json."""
    plot: str = ""
    """Draw success, live memories and pressure over training, a line for each seed, into this file (.png, .svg or
    .pdf)."""
    replot: bool = False
    """Train nothing, only print and draw the results that are there."""

    def __post_init__(self):
        cli.check_at_least(self, seeds=1, first_seed=0, jobs=1, eval_every=1, eval_episodes=1)


def main() -> None:
    benchmark_flags, training_flags = split_arguments(BenchmarkConfig, sys.argv[1:])
    config = cli.parse(BenchmarkConfig, benchmark_flags, "Learning on several seeds. Flags of train_rl.py may follow.")
    settings = parse_config(training_flags)
    check_no_actors(config.ray_address, training_flags)
    out = Path(config.out or f"benchmarks/results/learning-{settings.run.env}-{settings.run.memory}.json")
    if config.replot:
        _show(_load_report(out), config.plot)
        return
    kwargs = cli.json_object("--env-kwargs", settings.run.env_kwargs)
    hard = cli.json_object("--hard-env-kwargs", config.hard_env_kwargs or "{}")
    if not config.hard_env_kwargs and settings.run.env == "Corridor-v0":
        hard = {"min_length": kwargs.get("max_length", 200)}
    excluded = ("seed", "torch_threads", "run_dir")
    common_flags = {key: value for key, value in settings.flat().items() if key not in excluded}
    common_flags = json.loads(json.dumps(common_flags))  # as it is read from a file
    evaluation = {"hard": hard, "eval_every": config.eval_every, "eval_episodes": config.eval_episodes}
    report = _read_report(out, common_flags, evaluation) or {
        "command": "python -m benchmarks.learning " + " ".join(sys.argv[1:]),
        "flags": common_flags,
        **evaluation,
        "seeds": [],
    }
    results = report["seeds"]
    missing = [s for s in _seeds(config) if s not in {result["seed"] for result in results}]
    jobs = [(settings.replace(seed=seed, torch_threads=1), config, hard) for seed in missing]
    for result in results_of(train_and_evaluate, jobs, config.jobs, config.ray_address):
        results.append(result)
        results.sort(key=lambda r: r["seed"])
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (json.dumps(report, indent=1) + "\n").encode())
        print(f"seed {result['seed']} done", file=sys.stderr, flush=True)
    _show(report, config.plot)
    print(f"results: {out}")


def _read_report(out: Path, flags: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any] | None:
    """The results that are there. None if there are none. Raises UsageError if they have other settings, of the
    training (`flags`) or of its evaluations. Results of before 30 November 2026 only tell the hard episodes of
    these."""
    if not out.exists():
        return None
    report = _load_report(out)
    names = flags.keys() | report["flags"].keys()
    changes = sorted(name for name in names if flags.get(name) != report["flags"].get(name))
    changes += [name for name, value in evaluation.items() if report.get(name, value) != value]
    if changes:
        raise cli.UsageError(
            f"--out: expected new results or those of the same settings, {out} differs in {changes[0]}"
        )
    return report


def _load_report(out: Path) -> dict[str, Any]:
    """The results in a file. Raises UsageError, one line, if it has none."""
    try:
        report = json.loads(out.read_text(encoding="utf-8"))
        is_report = (
            report["command"]
            and report["flags"].keys()
            and [(r["seed"], r["history"], r["last"]) for r in report["seeds"]]
        )
    except FileNotFoundError:
        raise cli.UsageError(f"{out}: expected results of benchmarks.learning, there is no such file") from None
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        is_report = False
    if not is_report:
        raise cli.UsageError(f"{out}: expected results of benchmarks.learning, could not read them")
    return report


def _show(report: dict[str, Any], picture: str) -> None:
    print_table(report)
    if picture:
        plot(report, picture)
        print(f"plot: {picture}")


def _seeds(config: BenchmarkConfig) -> range:
    return range(config.first_seed, config.first_seed + config.seeds)


def split_arguments(
    config: type, arguments: list[str], training_names: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Splits arguments into those of a benchmark and those of a training script. The first ones are the flags that
    `config` has and what comes before any flag. training_names: the script's flags, by default those of train_rl.py.
    Raises UsageError, one line, for a flag that neither has."""
    names = cli.flag_names(config)
    all_names = [*names, *(flag_names() if training_names is None else training_names)]
    benchmark_arguments: list[str] = []
    training_arguments: list[str] = []
    receiver = benchmark_arguments
    for argument in arguments:
        if argument.startswith("--"):
            cli.check_flag(argument, all_names)
            receiver = benchmark_arguments if cli.flag_of(argument) in names else training_arguments
        receiver.append(argument)
    return benchmark_arguments, training_arguments


def train_and_evaluate(job: tuple[Settings, BenchmarkConfig, dict[str, Any]]) -> dict[str, Any]:
    """Trains one seed. Gives the history of its evaluations, its curve, and the evaluations of its last and its kept
    policy."""
    settings, config, hard = job
    env = settings.run.env
    seed = settings.run.seed
    os.environ["OMP_NUM_THREADS"] = "1"
    run = build(settings)
    trainer = run.trainer
    policy = run.policy
    kwargs = run.info["env_kwargs"]
    history, curve = _train(run, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    out = {"seed": seed, "history": history, "curve": curve, "peak_rss_gb": peak}
    out["last"] = _evaluate_at_end(policy, env, kwargs, hard, config.eval_episodes)
    if trainer.best is not None:
        policy.load_state_dict(trainer.best.weights)
        out["kept"] = _evaluate_at_end(policy, env, kwargs, hard, config.eval_episodes)
        out["kept"]["timesteps"] = trainer.best.timesteps
    folder = Path("runs/benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{env.replace('/', '-')}-{settings.run.memory}-{seed}-{int(time.time())}.safetensors"
    save_policy(policy, folder / name, run.info)
    out["policy"] = str(folder / name)
    return out


def _train(run: Any, config: BenchmarkConfig) -> tuple[list[dict[str, Any]], list[list[float | None]]]:
    """Trains to the end. Gives an entry for each evaluation, and a row [environment steps, CURVE] for every
    CURVE_STRIDE updates."""
    trainer = run.trainer
    history: list[dict[str, Any]] = []
    curve: list[list[float | None]] = []
    speeds: list[float] = []
    seconds = 0.0
    steps = 0  # since the last evaluation
    while not trainer.done:
        start_time = time.perf_counter()
        metrics = trainer.update()
        seconds += time.perf_counter() - start_time
        speeds.append(metrics["time/fps"])
        steps += trainer.rollout_size
        if trainer.updates % CURVE_STRIDE == 0:
            curve.append([trainer.timesteps, *(_round(metrics.get(name)) for name in CURVE)])
        if steps >= config.eval_every or trainer.done:
            steps = 0
            result = evaluate(run.policy, run.settings.run.env, run.info["env_kwargs"], config.eval_episodes)
            entry = {
                "timesteps": trainer.timesteps,
                "minutes": seconds / 60,
                "success_rate": result["success_rate"],
                "mean_return": result["mean_return"],
                "live": _mean(result["live_memories_mean"]),
                "fps": sum(speeds) / len(speeds),
                "rss_gb": resident_gb(),
            }
            print(f"seed {run.settings.run.seed} {json.dumps(entry)}", flush=True)
            prefixes = ("rollout/", "memory/", "success/")
            train_metrics = {name: value for name, value in metrics.items() if name.startswith(prefixes)}
            history.append({**entry, "train": train_metrics})
            speeds = []
    return history, curve


def _evaluate_at_end(
    policy: Any, env: str, kwargs: dict[str, Any], hard: dict[str, Any], episodes: int
) -> dict[str, Any]:
    """Evaluations of a trained policy on all episodes and on hard ones."""
    torch.manual_seed(0)
    all_result = evaluate(policy, env, kwargs, episodes, seed=1)
    hard_result = evaluate(policy, env, {**kwargs, **hard}, episodes, seed=2)
    return {"all": all_result, "hard": hard_result}


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def resident_gb() -> float:
    """Resident memory of this process, in GB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e9


def summary(result: dict[str, Any]) -> dict[str, Any]:
    """One row of the table."""
    history = result["history"]
    solved = [i for i, entry in enumerate(history) if (entry["success_rate"] or 0) >= SOLVED]
    entry = history[solved[0]] if solved else None  # the first evaluation that is solved
    kept = result.get("kept", result["last"])
    return {
        "seed": result["seed"],
        "steps to 95%": f"{entry['timesteps'] / 1e6:.1f}M" if entry else "never",
        "minutes": f"{entry['minutes']:.1f}" if entry else "-",
        "lowest after": f"{min(h['success_rate'] or 0 for h in history[solved[0] :]):.1%}" if entry else "-",
        "last: all": _score(result["last"]["all"]),
        "last: hard": _score(result["last"]["hard"]),
        "live on hard": f"{_mean(result['last']['hard']['live_memories_mean']) or 0:.1f}",
        "kept: all": _score(kept["all"]),
        "kept: hard": _score(kept["hard"]),
        "live on hard ": f"{_mean(kept['hard']['live_memories_mean']) or 0:.1f}",
        "at its end": f"{kept['hard'].get('live_memories_at_end') or 0:.1f}",
        "steps/s": f"{history[-1]['fps']:,.0f}",
        "peak GB": f"{peak:.2f}" if (peak := result["peak_rss_gb"]) else "-",
    }


def _score(result: dict[str, Any]) -> str:
    """Success, or the return where there is none."""
    success = result["success_rate"]
    return f"{result['mean_return']:.3g}" if success is None else f"{success:.1%}"


def print_table(report: dict[str, Any]) -> None:
    """The table of all seeds."""
    rows = [summary(result) for result in report["seeds"]]
    table = Table(title=f"{report['command']}   (hard: {json.dumps(report['hard'])})", title_justify="left")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)


def plot(report: dict[str, Any], path: str) -> None:
    """Draws the metrics of CURVE over training, as the trainer logged them, a line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [row for result in report["seeds"] for row in result["curve"]]
    panels = [i for i in range(len(CURVE)) if any(row[i + 1] is not None for row in rows)]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(9, 1.9 * len(panels)), sharex=True, squeeze=False, constrained_layout=True
    )
    axes = axes[:, 0]
    for ax, i in zip(axes, panels, strict=True):
        for result in report["seeds"]:
            points = [(row[0] / 1e6, row[i + 1]) for row in result["curve"] if row[i + 1] is not None]
            ax.plot(*zip(*points, strict=True), linewidth=1.1, label=f"seed {result['seed']}")
        ax.set_title(list(CURVE.values())[i], loc="left", fontsize=10)
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, ncols=5, loc="lower right")
    axes[-1].set_xlabel("million environment steps")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    cli.run(main)
