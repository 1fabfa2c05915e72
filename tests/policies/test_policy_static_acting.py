"""Acting in buffers of fixed shapes, whose steps a GPU captures: here replayed by a plain call on the same buffers."""

import gymnasium as gym
import pytest
import torch
from policy_cases import CASES, make_policy, observations
from torch.utils._python_dispatch import TorchDispatchMode

from expire_span_rl.policies import KINDS, ActorCritic
from expire_span_rl.policies.memory.survival_spans import SurvivalSpans
from expire_span_rl.policies.replay import Replay
from expire_span_rl.policies.transformer.acting import ladder

CAPTURED = [
    case for case in CASES
    if KINDS[case.values[0]].stores and case.values[0] != "compressive"
]  # fmt: skip

B, T = 5, 12
ASKING = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
"""Tags of operators for whose result the host waits, unless they are given no mask."""


class Waits(TorchDispatchMode):
    """Counts the operators that would wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        waits = _by_mask(args[1]) if name in ("index", "index_put_") else ASKING & set(func.tags)
        if waits:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _by_mask(indices):
    return any(index is not None and index.dtype == torch.bool for index in indices)


def make_policies(kind, settings, dtype=torch.float64):
    """A policy twice: as on a CPU, and as on a GPU."""
    plain, static = (make_policy(kind, settings, dtype) for _ in range(2))
    static.core.static = True
    return plain, static


@pytest.mark.parametrize("kind, settings", CAPTURED)
def test_static_buffers_act_as_growing_ones(kind, settings):
    """Five rollouts with episodes that begin anywhere, in buffers that are used again and grow."""
    plain, static = make_policies(kind, settings)
    generator = torch.Generator().manual_seed(3)
    memories = [policy.draw(policy.initial_memory(B), torch.Generator().manual_seed(1)) for policy in (plain, static)]
    acting, captured = None, []
    for rollout in range(5):
        plain_acting = plain.begin(memories[0], T)
        previous_acting, acting = acting, static.begin(memories[1], T, acting)
        captured.append(acting is previous_acting)
        for t in range(T):
            observation = observations(generator, B)
            start = torch.rand(B, generator=generator) < (1 if rollout == t == 0 else 0.1)
            static_outputs = [tensor.clone() for tensor in static.step_with_rewards(observation, acting, start)]
            for plain_output, static_output in zip(
                plain.step_with_rewards(observation, plain_acting, start), static_outputs, strict=True
            ):
                torch.testing.assert_close(static_output, plain_output, rtol=0, atol=1e-9)
            assert torch.equal(acting.live, plain_acting.live)
        rows = torch.tensor([1, 3])
        final = {key: value[rows] for key, value in observation.items()}
        torch.testing.assert_close(
            static.value(final, acting, rows), plain.value(final, plain_acting, rows), rtol=0, atol=1e-9
        )
        memories = [plain_acting.memory(), acting.memory()]
        assert torch.equal(memories[0].time, memories[1].time)
        for plain_output, static_output in zip(memories[0].layers, memories[1].layers, strict=True):
            assert torch.equal(plain_output.alive, static_output.alive) and torch.equal(
                plain_output.birth[plain_output.alive], static_output.birth[plain_output.alive]
            )
            torch.testing.assert_close(
                static_output.hidden[plain_output.alive], plain_output.hidden[plain_output.alive], rtol=0, atol=1e-9
            )
    assert not captured[0] and any(captured)  # once they were large enough


@pytest.mark.parametrize("kind, settings", CAPTURED)
def test_a_static_step_asks_the_device_for_nothing(kind, settings, monkeypatch):
    monkeypatch.setattr(SurvivalSpans, "is_known_unreleased", lambda self: False)  # as on a GPU
    _, policy = make_policies(kind, settings)
    acting = policy.begin(policy.draw(policy.initial_memory(B), None), T)
    generator = torch.Generator().manual_seed(1)
    policy.step(observations(generator, B), acting, torch.ones(B, dtype=torch.bool))
    observation, start = observations(generator, B), torch.rand(B, generator=generator) < 0.5
    with Waits() as waits:
        policy.step(observation, acting, start)
    assert waits.names == []


def test_what_is_counted_is_found():
    with Waits() as waits:
        x = torch.arange(3.0)
        float(x.sum()), x[x > 1], torch.nonzero(x), torch.unique(x), torch.equal(x, x)
    assert len(waits.names) == 5


def test_a_full_static_acting_is_refused():
    _, policy = make_policies("expire_span", None)
    acting, observation = policy.begin(policy.initial_memory(2), 1), observations(torch.Generator(), 2)
    policy.step(observation, acting, torch.zeros(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="^acting: expected room for a step, got 1 of 1 steps taken$"):
        policy.step(observation, acting, torch.zeros(2, dtype=torch.bool))


def test_slots_that_are_merged_are_not_captured():
    """Which slots are merged depends on numbers of the device."""
    policy = make_policy("compressive")
    policy.core.static = True
    assert not policy.begin(policy.initial_memory(2), 4).static


@pytest.mark.parametrize("size, capacity", [(0, 16), (1, 16), (16, 16), (17, 32), (33, 64), (1000, 1024)])
def test_capacities(size, capacity):
    assert ladder(size) == capacity


def test_a_replay_refuses_other_shapes_and_overwrites_what_it_returned():
    replay = Replay(lambda x: [x * 2], {"x": torch.zeros(2)}, [])
    first = replay({"x": torch.tensor([1.0, 2.0])})[0]
    assert replay({"x": torch.tensor([3.0, 4.0])})[0] is first and first.tolist() == [6, 8]
    with pytest.raises(ValueError, match=r"^x: expected a tensor \[2\], as before, got \[3\]$"):
        replay({"x": torch.zeros(3)})


def test_an_observation_may_have_any_name():
    """Also that of the flag which says where episodes begin."""
    space = gym.spaces.Dict({"episode_start": gym.spaces.Discrete(3)})
    plain, static = (ActorCritic.for_spaces(space, gym.spaces.Discrete(2), memory="transformer_xl") for _ in range(2))
    static.load_state_dict(plain.state_dict())
    static.core.static = True
    torch.nn.init.normal_(plain.policy_head.weight, generator=torch.Generator().manual_seed(0))
    static.load_state_dict(plain.state_dict())
    actings = [policy.begin(policy.initial_memory(2), 4) for policy in (plain, static)]
    for t in range(4):
        observation = {"episode_start": torch.tensor([t % 3, 1])}
        start = torch.tensor([t == 0, t == 2])
        left, right = (p.step(observation, a, start)[0] for p, a in zip((plain, static), actings, strict=True))
        torch.testing.assert_close(left, right)
