"""Prediction alone, a probe: how soon does a memory say what a door of Portal-v0 leads to that has been tried before?

    python -m benchmarks.prediction --memory transformer_xl --window 256 --seed 1

Sequences of 128 steps through 6 rooms, doors at random, nothing remembered at their start; after each optimiser step 16
new ones. Only the next observation is learned (`policies.prediction`), by the optimiser of training. The figure is the
share of known doors for which home, and no other tile, is predicted behind the agent just where the door leads home.
The defaults of the memory and of the Transformer are those of training on Portal-v0. A policy cannot use what this does
not learn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning import split_arguments
from expire_span_rl import cli
from expire_span_rl.agents import Trainer
from expire_span_rl.building import build
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.envs import make_vec_env
from expire_span_rl.envs.portal import HOME, Portal
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH
from expire_span_rl.policies import ActorCritic

ROOMS, SEQUENCES, STEPS = 6, 16, 128
BEHIND = 0, 1  # the tile west of the agent in its 3x3 window


@dataclass(frozen=True)
class ProbeConfig:
    optimiser_steps: int = 1500
    """Optimiser steps."""
    every: int = 100
    """Optimiser steps between two lines."""

    def __post_init__(self):
        cli.check_at_least(self, optimiser_steps=1, every=1)


@dataclass(frozen=True)
class Sequences:
    """T steps of B agents, and what followed each step."""

    observation: Mapping[str, Tensor]  # entries [T,B, ...]
    following: Mapping[str, Tensor]  # entries [T,B, ...]
    actions: Tensor  # int64 [T,B]
    starts: Tensor  # bool [T,B]: an episode begins
    goes_on: Tensor  # bool [T,B]: what follows is of the same episode
    known: Tensor  # bool [T,B]: a door is taken in a room in which one has been taken in this episode and sequence


def sequences(env: Any, rng: np.random.Generator) -> Sequences:
    """Fresh episodes, in which doors are taken at random."""
    core: Portal = env.unwrapped.core
    here = np.arange(env.num_envs)
    seen: list[Mapping[str, Tensor]] = []
    actions, starts, known = [], [np.ones(env.num_envs, bool)], []
    tried = np.zeros((env.num_envs, ROOMS), bool)
    observation, _ = env.reset(seed=int(rng.integers(2**40)))
    for _ in range(STEPS):
        seen.append({key: torch.as_tensor(np.array(value)) for key, value in observation.items()})
        doors = core.x == core.room_length - 1
        room = core.room.copy()
        actions.append(np.where(doors, rng.choice([NORTH, SOUTH], env.num_envs), EAST))
        known.append(doors & tried[here, room])
        tried[here, room] |= doors
        observation, _, terminated, truncated, _ = env.step(actions[-1])
        starts.append(terminated | truncated)
        tried[starts[-1]] = False
    seen.append({key: torch.as_tensor(np.array(value)) for key, value in observation.items()})
    begins = torch.as_tensor(np.array(starts))
    goes_on = ~begins[1:]
    return Sequences(
        {key: torch.stack([step[key] for step in seen[:-1]]) for key in seen[0]},
        {key: torch.stack([step[key] for step in seen[1:]]) for key in seen[0]},
        torch.as_tensor(np.array(actions)),
        begins[:-1],
        goes_on,
        torch.as_tensor(np.array(known)) & goes_on,
    )


def learn(policy: ActorCritic, learner: Any, seed: int, optimiser_steps: int) -> Iterator[tuple[float, float]]:
    """After each optimiser step the loss, in nats per observation, and the share of known doors that were right before
    it.

    learner: gives the optimiser and the predictor."""
    rng, predictor = np.random.default_rng(seed), learner.predictor
    env = make_vec_env("Portal-v0", SEQUENCES, min_rooms=ROOMS, max_rooms=ROOMS, max_steps=10 * STEPS)
    parameters = [p for group in learner.optimizer.param_groups for p in group["params"]]
    for _ in range(optimiser_steps):
        s = sequences(env, rng)
        features = policy.unroll(s.observation, policy.initial_memory(SEQUENCES), s.starts).features
        following = {key: value[s.goes_on] for key, value in s.following.items()}
        loss = predictor.loss(features[s.goes_on], s.actions[s.goes_on], following)
        with torch.no_grad():
            objects = predictor.objects(features[s.known], s.actions[s.known], "image", BEHIND)
        home = s.following["image"][s.known][:, BEHIND[0], BEHIND[1], 0] == HOME[0]
        learner.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, learner.config.max_grad_norm)
        learner.optimizer.step()
        yield float(loss.detach()), float(((objects == HOME[0]) == home).float().mean())
    env.close()


def main() -> None:
    own, rest = split_arguments(ProbeConfig, sys.argv[1:])
    config = cli.parse(ProbeConfig, own, "Prediction alone, on Portal-v0. Flags of train_rl.py may follow.")
    settings = parse_config(["--env", "Portal-v0", *rest])
    if getattr(settings.agent, "observation_prediction_coef", 0) == 0:
        raise cli.UsageError("--agent, --observation-prediction-coef: expected a policy of ours that learns to predict")
    run = build(settings.replace(torch_threads=1))
    trainer, figures = cast(Trainer, run.trainer), []
    for count, told in enumerate(
        learn(cast(ActorCritic, run.policy), trainer.agent, settings.run.seed, config.optimiser_steps), 1
    ):
        figures.append(told)
        if count % config.every == 0 or count == config.optimiser_steps:
            loss, right = np.nanmean(figures, 0)
            print(f"{count:6,} optimiser steps: {loss:.2f} nats, known doors right {right:.1%}", flush=True)
            figures = []


if __name__ == "__main__":
    cli.run(main)
