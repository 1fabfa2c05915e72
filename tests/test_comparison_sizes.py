"""The budgets of the comparison: every kind with slots has a size, and keeps within it."""

from __future__ import annotations

import pytest

from benchmarks.comparison_sizes import SIZES, SPAN_SHARE
from expire_span_rl.cli.settings import parse_config
from expire_span_rl.envs import make_vec_env
from expire_span_rl.evaluation import evaluate
from expire_span_rl.policies import KINDS, ActorCritic, core_config
from expire_span_rl.policies.encoders import observation_spec


def test_every_kind_with_slots_has_a_size():
    assert SIZES.keys() == {name for name, kind in KINDS.items() if kind.stores}


@pytest.mark.parametrize("budget", [8, 16, 32, 61])
@pytest.mark.parametrize("kind", ["transformer_xl", "compressive"])
def test_a_window_has_exactly_its_budget_at_its_peak(kind, budget):
    """evaluate.py counts the live memories of episodes that are long enough to fill it."""
    settings = parse_config(["--memory", kind]).replace(**SIZES[kind](budget))
    env = make_vec_env("Corridor-v0", 1)
    space = env.single_observation_space
    memory = settings.memory
    core = core_config(kind)(width=16, num_layers=1, num_heads=1)
    policy = ActorCritic.for_spaces(space, env.single_action_space, memory=kind, memory_config=memory, core=core)
    assert policy.config.observation == observation_spec(space)
    result = evaluate(policy, "Corridor-v0", {"min_length": 200, "max_length": 200}, 2)
    assert result["live_memories_max"] == [budget]


@pytest.mark.parametrize("kind", ["expire_span", "adaptive_span"])
def test_a_ramp_takes_at_most_a_quarter(kind):
    assert [SIZES[kind](budget)["ramp"] for budget in (8, 16, 32, 128)] == [2, 4, 8, 8]
    assert SIZES[kind](16)["memory_budget"] == 16 * SPAN_SHARE <= 16
