"""`predict`, Stable-Baselines3's signature, and the contract's rest: single observations, states, groups, samples."""

from __future__ import annotations

import warnings
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_cases import CASES, SMALL, SPEC, experience, make_policy

from expire_span_rl import envs
from expire_span_rl.policies import KINDS, ActorCritic, PolicyConfig, observation_spec
from expire_span_rl.policies.actions.base import gumbel_max
from expire_span_rl.policies.transformer.layer import TransformerConfig


def arrays(kind: str = "expire_span", steps: int = 150, batch: int = 3):
    """A float32 policy and experience as arrays."""
    policy = make_policy(kind, dtype=torch.float32)
    rollout = experience(torch.Generator().manual_seed(0), steps, batch, 0.02, dtype=torch.float32)
    return policy, {key: value.numpy() for key, value in rollout.observation.items()}, rollout.start.numpy()


@pytest.mark.parametrize("kind, settings", CASES)
def test_predict_is_the_unroll(kind, settings):
    """150 deterministic calls, more than fit between two compactions, choose what one unroll's logits say. Spans are
    not renewed, as in one unroll."""
    policy = make_policy(kind, {**settings, "renew_every": 0} if kind == "expire_span" else settings)
    rollout = experience(torch.Generator().manual_seed(0), 150, 3, 0.02)
    logits = policy.unroll(rollout.observation, policy.initial_memory(3), rollout.start).logits
    top = logits.topk(2).values
    assert (top[..., 0] - top[..., 1]).min() > 1e-7  # no ties, so that rounding decides nothing
    state = None
    for t in range(150):
        step_observation = {key: value[t].numpy() for key, value in rollout.observation.items()}
        actions, state = policy.predict(step_observation, state, rollout.start[t].numpy(), deterministic=True)
        assert actions.shape == (3,) and actions.dtype == np.int64
        np.testing.assert_array_equal(actions, logits[t].argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_single_observation_gives_a_scalar_action(kind):
    """Unbatched observations, as a gymnasium.Env gives them, with and without `episode_start`: the actions of a batch
    of one."""
    policy, observation, start = arrays(kind, steps=20)
    state = batch_state = None
    for t in range(20):
        single = {key: value[t, 0] for key, value in observation.items()}
        action, state = policy.predict(single, state, np.array([start[t, 0]]), deterministic=True)
        assert np.ndim(action) == 0 and action in range(4)
        actions, batch_state = policy.predict(
            {key: value[t, :1] for key, value in observation.items()}, batch_state, start[t, :1], deterministic=True
        )
        assert actions.tolist() == [action]
    assert isinstance(state, type(batch_state))
    action, _ = policy.predict(single)
    assert np.ndim(action) == 0


def test_predict_takes_observations_of_a_single_environment():
    env = envs.make_env("Corridor-v0", max_length=5)
    policy = ActorCritic.for_spaces(env.observation_space, env.action_space, memory="none")
    observation, _ = env.reset(seed=0)
    action, _ = policy.predict(observation, deterministic=True)
    assert env.action_space.contains(action)
    env.step(action)


def test_an_action_that_the_environment_hides_is_not_shown_either():
    """The same actions for the environment's own observations as for those that training sees."""

    class Hiding(gym.Env):
        metadata: ClassVar = {"hides_previous_action": True}
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Discrete(4)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

        def step(self, action):
            return self.np_random.uniform(-1, 1, 2).astype(np.float32), 0.0, False, False, {}

    env = envs.make_env(Hiding)
    torch.manual_seed(0)
    policy = ActorCritic.for_spaces(env.observation_space, env.action_space, memory="gru")
    policy.policy_head.weight.data.normal_()
    assert policy.config.observation["previous_action"]["hidden"]
    observation, _ = env.reset(seed=0)
    state = bare_state = None
    for t in range(20):
        start = np.array([t == 0])
        action, state = policy.predict(observation, state, start, deterministic=True)
        bare_action, bare_state = policy.predict(observation["observation"], bare_state, start, True, reward=0.0)
        assert action == bare_action
        observation, *_ = env.step(action)


def test_arrays_that_are_turned_round_are_read():
    policy, observation, start = arrays("gru", steps=1)
    image = observation["image"][0]
    turned = {**{key: value[0] for key, value in observation.items()}, "image": image[:, ::-1]}
    copied = {**turned, "image": image[:, ::-1].copy()}
    actions, _ = policy.predict(turned, None, start[0], deterministic=True)
    assert actions.tolist() == policy.predict(copied, None, start[0], deterministic=True)[0].tolist()


def test_a_stale_state_is_refused():
    """A state serves one call, since acting writes into it; it serves no other number of environments."""
    policy, observation, start = arrays()
    step_observation = {key: value[0] for key, value in observation.items()}
    _, stale = policy.predict(step_observation, None, start[0])
    _, state = policy.predict(step_observation, stale, start[1])
    with pytest.raises(ValueError, match=r"^state: expected the last one returned \(call 2\), got call 1's$"):
        policy.predict(step_observation, stale, start[1])
    with pytest.raises(ValueError, match="^state: expected 2 environments, got 3$"):
        policy.predict({key: value[:2] for key, value in step_observation.items()}, state, start[1, :2])
    policy.predict(step_observation, state, start[2])


def test_a_stale_state_is_refused_across_a_compaction():
    """A state from before `begin` was called again is as stale as any other."""
    policy, observation, start = arrays()
    step_observation, states = {key: value[0] for key, value in observation.items()}, [None]
    for _ in range(66):
        states.append(policy.predict(step_observation, states[-1], start[1])[1])
    for stale in (states[1], states[64], states[65]):
        with pytest.raises(ValueError, match="^state: "):
            policy.predict(step_observation, stale, start[1])


def test_sampling_follows_the_softmax():
    """20,000 draws; frequencies within four standard errors, an impossible action never."""
    logits = torch.tensor([1.0, 0.0, -1.0, -torch.inf]).expand(20_000, -1)
    frequencies = torch.bincount(gumbel_max(logits, torch.Generator().manual_seed(0)), minlength=4) / 20_000
    expected = torch.softmax(logits[0], -1)
    assert ((frequencies - expected).abs() <= 4 * (expected * (1 - expected) / 20_000).sqrt()).all()
    torch.manual_seed(0)
    policy, observation, start = arrays()
    step_observation = {key: value[0] for key, value in observation.items()}
    assert len({tuple(policy.predict(step_observation, None, start[0])[0]) for _ in range(20)}) > 1


def test_parameter_groups_hold_every_parameter_once():
    """The memory kind's own parameters learn at their own rates."""
    for kind in KINDS:
        policy = make_policy(kind)
        groups = policy.parameter_groups(0.5)
        ids = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(ids) == sorted(id(parameter) for parameter in policy.parameters())
        assert all(group["lr"] == 0.5 * group["scale"] for group in groups)
    config = KINDS["expire_span"].Config(**SMALL["expire_span"][0])
    groups = make_policy("expire_span").parameter_groups(1.0)
    assert [group["scale"] for group in groups] == [1.0, config.span_lr_scale, config.span_bias_lr_scale]
    assert [group["span_parameters"] for group in groups] == [False, True, True]
    for kind, has_span_parameters in (("adaptive_span", True), ("compressive", False)):
        assert [group["span_parameters"] for group in make_policy(kind).parameter_groups(1.0)] == [
            False,
            has_span_parameters,
        ]


def test_an_untrained_policy_prefers_nothing_and_expects_nothing():
    """Heads begin at zero: uniform logits and values of 0, for every kind."""
    rollout = experience(torch.Generator().manual_seed(0), 4, 2, dtype=torch.float32)
    for kind in KINDS:
        settings = SMALL.get(kind, ({},))[0]
        policy = ActorCritic(PolicyConfig(SPEC, 4, kind, KINDS[kind].Config(**settings)))
        out = policy.unroll(rollout.observation, policy.initial_memory(2), rollout.start)
        assert (out.logits == 0).all() and (out.values == 0).all()


def test_a_default_config_can_learn():
    """`memory_config=None` stands for the kind's defaults, and these give a finite loss."""
    rollout = experience(torch.Generator().manual_seed(0), 4, 2, dtype=torch.float32)
    for kind in KINDS:
        policy = ActorCritic(PolicyConfig(SPEC, 4, kind))
        out = policy.unroll(rollout.observation, policy.initial_memory(2), rollout.start, pressure=0.5)
        assert out.memory_loss.isfinite(), kind


def test_what_cannot_be_built_is_refused():
    """Unknown memory kinds, spaces no policy can read, widths that heads do not divide."""
    with pytest.raises(ValueError, match=rf"^memory kind: expected one of {', '.join(KINDS)}, got 'lstn'$"):
        ActorCritic(PolicyConfig(SPEC, 4, "lstn"))
    space = gym.spaces.Dict({"words": gym.spaces.Text(5)})
    with pytest.raises(
        ValueError, match="^observation 'words': expected a Box, Discrete, MultiDiscrete, MultiBinary or Text"
    ):
        observation_spec(space)
    with pytest.raises(ValueError, match=r"^--width: expected a multiple of --num-heads \(4\), got 10$"):
        TransformerConfig(width=10)
    with pytest.raises(ValueError, match="^--ramp: expected at least 1 with --span-model sigmoid, got 0$"):
        KINDS["expire_span"].Config(ramp=0, span_model="sigmoid")
    with pytest.raises(ValueError, match="^--ramp: expected at least 0, got -1$"):
        KINDS["expire_span"].Config(ramp=-1)
    with pytest.raises(ValueError, match="^--window: expected at least 1, got 0"):
        KINDS["transformer_xl"].Config(window=0)
    with pytest.raises(ValueError, match="^--ramp: expected at least 1, got 0$"):
        KINDS["adaptive_span"].Config(ramp=0)
    for name, low in (("window", 0), ("compression_rate", 2), ("compressed_window", 1)):
        with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: expected at least {low}, got {low - 1}$"):
            KINDS["compressive"].Config(**{name: low - 1})
    with pytest.raises(ValueError, match="^--initial-span: expected a fraction between 0 and 1, got 1$"):
        KINDS["adaptive_span"].Config(initial_span=1)


@pytest.fixture(scope="module")
def parts_policy() -> ActorCritic:
    """Of an environment with two parts in its observation."""
    space = gym.spaces.Dict({"cue": gym.spaces.Discrete(3, start=1), "place": gym.spaces.Box(-1, 1, (2,))})
    return ActorCritic.for_spaces(space, gym.spaces.Discrete(2), memory="none")


@pytest.mark.parametrize(
    "observation, message",
    [
        (np.zeros(3), "observation: expected the parts 'cue', 'place', got one ndarray"),
        ({"cue": 1}, "observation: expected a part 'place', which the policy reads, there is none"),
        ({"cue": 9, "place": np.zeros(2)}, "observation 'cue': expected a number from 1 to 3, got 9"),
        ({"cue": "x", "place": np.zeros(2)}, "observation 'cue': expected a number, or a batch of them, got str"),
        (
            {"cue": 1, "place": np.zeros(4)},
            r"observation 'place': expected an array of shape \(2,\), or a batch of them, got an array of shape \(4,\)",
        ),
        ({"cue": 1, "place": None}, r"observation 'place': expected an array of shape \(2,\), .* got NoneType"),
        ({"cue": 1, "place": [0, np.nan]}, "observation 'place': expected finite numbers, got nan"),
        (
            {"cue": [1, 2], "place": np.zeros((3, 2))},
            "observation 'place': expected a batch of 2, as 'cue' has, got a batch of 3",
        ),
        (
            {"cue": [1, 2], "place": np.zeros(2)},
            "observation 'place': expected a batch of 2, as 'cue' has, got no batch axis",
        ),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(parts_policy, observation, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        parts_policy.predict(observation)


def test_masks_that_the_policy_does_not_read_are_refused(parts_policy):
    with pytest.raises(ValueError, match="^action_masks: expected none, since the policy was trained without$"):
        parts_policy.predict({"cue": 1, "place": np.zeros(2)}, action_masks=np.array([1, 0]))
    action, _ = parts_policy.predict({"cue": [1, 3], "place": torch.zeros(2, 2)})
    assert action.shape == (2,)


def test_a_single_position_is_enough():
    """What heads learn for each age needs no age beyond the present."""
    network = TransformerConfig(num_positions=1, age_gain=10.0)
    rollout = experience(torch.Generator().manual_seed(0), 4, 2, dtype=torch.float32)
    policy = ActorCritic(PolicyConfig(SPEC, 4, "expire_span", core=network))
    assert policy.unroll(rollout.observation, policy.initial_memory(2), rollout.start).values.isfinite().all()


def test_without_a_reward_the_mean_of_training_is_expected():
    """Not what the reward head predicts: it learns from rewards of another scale."""
    space = gym.spaces.Box(-1, 1, (2,))
    env = gym.spaces.Dict({"observation": space, "previous_reward": gym.spaces.Box(-np.inf, np.inf, ())})
    policy = ActorCritic.for_spaces(env, gym.spaces.Discrete(2), normalize_reward=True, memory="none")
    observation = {"observation": torch.zeros(3, 2, 2), "previous_reward": torch.full((3, 2), 7.0)}
    policy.observe(observation)
    policy.reward_head.bias.data.fill_(0.1)
    _, state = policy.predict(np.zeros((2, 2)))
    assert state.reward.tolist() == [7.0, 7.0]


def test_a_policy_that_knows_masks_says_that_it_got_none():
    spaces = {"seen": gym.spaces.Box(-1, 1, (2,)), "action_mask": gym.spaces.Box(0, 1, (2,), np.int8)}
    policy = ActorCritic.for_spaces(gym.spaces.Dict(spaces), gym.spaces.Discrete(2), memory="none")
    with pytest.warns(UserWarning, match="^predict: there are no action_masks, so that all actions count as allowed$"):
        policy.predict(np.zeros(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            assert policy.predict(np.zeros(2), action_masks=np.array([0, 1]))[0] == 1
    with pytest.raises(TypeError, match="^state: expected None or what the last call returned, got int$"):
        policy.predict(np.zeros(2), 5)
