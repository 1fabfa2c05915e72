"""A sweep with Optuna that ends unpromising trials early: six short trainings, about half a minute.

pip install optuna
PYTHONPATH=. python examples/optuna_sweep.py
"""

from __future__ import annotations

import sys
from functools import partial

import optuna
from my_envs import Recall

import expire_span_rl as es


def train(trial: optuna.Trial, total_timesteps: int) -> float:
    """One training. Returns the success rate of its latest update."""
    settings = {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 2e-2, log=True),
        "gating": trial.suggest_categorical("gating", [False, True]),
    }
    small = {"num_envs": 32, "num_steps": 20, "num_minibatches": 4, "num_layers": 1, "width": 32}
    model = es.PPO("expire_span", partial(Recall, delay=4), **small, **settings)

    def report(model: es.PPO) -> None:
        """Called after every update. An exception ends the training as returning False does."""
        trial.report(model.metrics.get("rollout/success_rate", 0.0), model.num_timesteps)
        if trial.should_prune():
            raise optuna.TrialPruned

    try:
        model.learn(total_timesteps, report)
    finally:
        model.close()
    return model.metrics.get("rollout/success_rate", 0.0)


def main(trials: int = 6, total_timesteps: int = 20_000) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A trial is pruned when it does worse than the median of those before it at the same step.
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=5_000)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0), pruner=pruner)
    study.optimize(lambda trial: train(trial, total_timesteps), trials)
    for trial in study.trials:
        steps = max(trial.intermediate_values)
        print(f"trial {trial.number}: {trial.state.name.lower()} after {steps:,} steps, {trial.params}")
    print(f"best: {study.best_value:.0%} right with {study.best_params}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
