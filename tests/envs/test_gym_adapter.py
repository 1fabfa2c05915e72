"""Environments of other packages: all spaces, copies, checked values, plain infos, seeds of episodes, one-line
errors."""

from __future__ import annotations

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_cases import ACTIONS, LEAVES, Counter, Maker, Patched, Stranger
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.gym_adapter import AdaptedEnv, EnvironmentWarning, adapt, episode_seed
from expire_span_rl.envs.infos import plain_info
from expire_span_rl.spaces import no_action, previous_action

NESTS = {
    "bare": lambda leaf: leaf,
    "dict": lambda leaf: spaces.Dict({"a": leaf, "b": spaces.Discrete(2)}),
    "tuple": lambda leaf: spaces.Tuple((leaf, spaces.Discrete(2))),
    "dict_of_tuple": lambda leaf: spaces.Dict({"a": spaces.Tuple((spaces.Discrete(2), leaf)), "b": leaf}),
    "tuple_of_dict": lambda leaf: spaces.Tuple((spaces.Dict({"a": leaf, "b": leaf}), leaf)),
}


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("nest", NESTS)
def test_every_observation_space_nested_two_deep(nest, leaf):
    """The single and the vector form agree in every entry with the environment's own observation."""
    space = NESTS[nest](LEAVES[leaf])
    vector = envs.make_vec_env(Maker(Stranger, observation_space=space, length=3), 2)
    single = envs.wrap_env(Stranger(space, length=3))
    bare = Stranger(space, length=3)
    assert vector.single_observation_space == single.observation_space
    assert vector.left_out == single.left_out == {}
    batch, _ = vector.reset(seed=5)
    entries, _ = single.reset(seed=6)
    raw_observation, _ = bare.reset(seed=6)
    num_entries = {"bare": 1, "dict": 2, "tuple": 2, "dict_of_tuple": 3, "tuple_of_dict": 3}[nest]
    find_leaf = {
        "bare": lambda observation: observation,
        "dict": lambda observation: observation["a"],
        "tuple": lambda observation: observation[0],
        "dict_of_tuple": lambda observation: observation["a"][1],
        "tuple_of_dict": lambda observation: observation[0]["a"],
    }[nest]
    entry_name = {
        "bare": "image" if leaf in ("picture", "channels_first") else "observation",
        "dict": "a",
        "tuple": "0",
        "dict_of_tuple": "a/1",
        "tuple_of_dict": "0/a",
    }[nest]
    for step in range(1, 8):
        assert vector.observation_space.contains(batch) and single.observation_space.contains(entries)
        assert len(entries) == num_entries + 2
        for name, value in entries.items():
            np.testing.assert_array_equal(batch[name][1], value)
        if leaf != "text":
            np.testing.assert_array_equal(entries[entry_name], find_leaf(raw_observation))
        batch, *_ = vector.step(np.array([0, 2]))
        entries, _, terminated, _, _ = single.step(2)
        if terminated:
            entries, _ = single.reset()
            raw_observation, _ = bare.reset(seed=episode_seed(6, step // 3))
        else:
            raw_observation, *_ = bare.step(2)


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_space(name):
    """Actions reach the environment unchanged, and the next observation has them as the previous action."""
    space = ACTIONS[name]
    vector = envs.make_vec_env(Maker(Stranger, action_space=space, length=3), 2)
    single = envs.wrap_env(Stranger(action_space=space, length=3))
    observation, _ = vector.reset(seed=0)
    np.testing.assert_array_equal(observation["previous_action"], np.stack([no_action(space)] * 2))
    single.reset(seed=0)
    vector.action_space.seed(0)
    for step in range(1, 7):
        actions = vector.action_space.sample()
        observation, reward, terminated, _, infos = vector.step(actions)
        entries, single_reward, *_ = single.step(actions[0])
        assert vector.observation_space.contains(observation) and single.observation_space.contains(entries)
        batch = infos["final_obs"] if terminated[0] else observation
        for b in range(2):
            np.testing.assert_array_equal(batch["previous_action"][b], previous_action(space, actions[b]))
            assert reward[b] == pytest.approx(np.sum(actions[b]) + (step - 1) % 3 + 1)
        np.testing.assert_array_equal(entries["previous_action"], batch["previous_action"][0])
        assert batch["previous_reward"][0] == np.float32(single_reward) == entries["previous_reward"]
        if terminated[0]:
            single.reset()
            np.testing.assert_array_equal(observation["previous_action"], np.stack([no_action(space)] * 2))


@pytest.mark.parametrize(
    ("name", "wraps"), itertools.product(ACTIONS, (["stretch=1"], ["episodes=2"], ["occlude=1-2"]))
)
def test_long_trajectories_of_every_action_space(name, wraps):
    gym.register("Stranger-v0", Stranger, kwargs={"action_space": ACTIONS[name], "length": 3})
    try:
        vector = envs.make_vec_env("Stranger-v0", 2, wraps=wraps)
        single = envs.make_env("Stranger-v0", wraps=wraps, render_mode="rgb_array")
    finally:
        del gym.registry["Stranger-v0"]
    batch, _ = vector.reset(seed=3)
    entries, _ = single.reset(seed=4)
    vector.action_space.seed(0)
    endings = 0
    for _ in range(20):
        for entry, value in entries.items():
            np.testing.assert_array_equal(batch[entry][1], value)
        actions = vector.action_space.sample()
        batch, reward, terminated, _, infos = vector.step(actions)
        entries, single_reward, single_terminated, _, _ = single.step(actions[1])
        assert (reward[1], terminated[1]) == (single_reward, single_terminated)
        assert single.render().shape == (16, 16, 3)
        if single_terminated:
            endings += 1
            for entry, value in entries.items():
                np.testing.assert_array_equal(infos["final_obs"][entry][1], value)
            entries, _ = single.reset()
    assert endings >= 2


def test_an_environment_may_reuse_its_observation_array():
    for vectorization in ("auto", "sync"):
        vector = envs.make_vec_env(Maker(Counter, length=3), 2, vectorization=vectorization)
        observations = [vector.reset(seed=0)[0]["observation"]]
        final_observations = []
        for _ in range(6):
            observation, *_, infos = vector.step(np.zeros(2, int))
            observations.append(observation["observation"])
            if "final_obs" in infos:
                final_observations.append(infos["final_obs"]["observation"])
        assert [batch[0, 0] for batch in observations] == [0, 1, 2, 0, 1, 2, 0]
        assert [batch[1, 1] for batch in final_observations] == [3, 3]


def test_an_environment_may_write_to_its_actions():
    def step(env, action):
        action += 100
        return Counter.step(env, action - 100)

    space = spaces.MultiDiscrete([3, 3])
    vector = envs.make_vec_env(Maker(Patched, method="step", replacement=step, action_space=space), 2)
    vector.reset(seed=0)
    actions = np.array([[1, 2], [0, 1]])
    observation, *_ = vector.step(actions)
    assert actions.tolist() == [[1, 2], [0, 1]] == observation["previous_action"].tolist()


def test_infos_are_plain():
    info = {
        "number": 3,
        "share": np.float32(0.5),
        "flag": np.bool_(True),
        "array": np.array(2.5),
        "text": "won",
        "huge": 2**100,
        # All others are not plain.
        "none": None,
        "list": [1, 2],
        "ragged": np.arange(3),
        "nested": {"a": 1},
        "_private": 1,
        "shaping": 0.5,
        "final_obs": 1,
        5: 1,
        "vector": np.array([1]),
    }
    plain = {"number": 3, "share": 0.5, "flag": True, "array": 2.5, "text": "won", "huge": 2**100}
    assert plain_info(info) == plain
    assert plain_info(info, shaping=True) == {**plain, "shaping": 0.5}


def test_infos_of_different_types_are_joined_in_a_vector():
    """An info's type may differ from row to row and step to step: whole numbers, reals, texts, nothing."""
    values = [1, 0.5, "won", None, [1], np.arange(2), True, 2**100]

    def info(env):
        value = values[(env.seeds[-1] + env.t) % len(values)] if env.seeds[-1] is not None else 1
        return {
            "value": value,
            "visited": np.arange(1 + env.t),
            "shaping": 5.0,
            "mixed": 1 if env.t % 2 else 0.5,
        }

    vector = envs.make_vec_env(Maker(Patched, method="info", replacement=info, length=4), 8)
    vector.reset(seed=0)
    for step in range(1, 9):
        observation, reward, terminated, _, infos = vector.step(np.ones(8, int))
        batch = infos["final_obs"] if terminated.all() else observation
        np.testing.assert_array_equal(batch["previous_reward"], reward)  # `shaping` has no meaning here
        step_infos = infos["final_info"] if terminated.all() else infos
        assert "visited" not in step_infos and "shaping" not in step_infos
        assert step_infos["mixed"].tolist() == [1 if ((step - 1) % 4 + 1) % 2 else 0.5] * 8
        assert step_infos["_value"].shape == (8,)
        if step < 4:
            expected = [values[(b + step) % 8] for b in range(8)]
            assert [step_infos["value"][b] for b in range(8) if step_infos["_value"][b]] == [
                value for value in expected if value is not None and not isinstance(value, (list, np.ndarray))
            ]


@pytest.mark.parametrize(
    "reward", [1, np.float32(1), np.array(1.0), np.array([1.0], np.float32), np.array([[1]]), True]
)
def test_rewards_that_are_a_number(reward):
    vector = envs.make_vec_env(Maker(Patched, method="reward", replacement=lambda env, action: reward), 2)
    vector.reset(seed=0)
    assert vector.step(np.zeros(2, int))[1].tolist() == [1.0, 1.0]


def from_step_3(value, initial_value):
    """A method that returns `value` from step 3 on, and `initial_value` before."""
    return lambda env, *_: value if env.t >= 3 else initial_value


X = np.zeros(2, np.float32)
RUN_FAILURES = [
    (
        "reward",
        lambda env, *_: 1e39 if env.seeds[-1] == 7 and env.t > 2 else float("nan") if env.seeds[-1] == 0 else 1.0,
        "reward: expected a finite number that float32 can hold, got 1e+39",
    ),
    ("reward", from_step_3(float("nan"), 1.0), "reward: expected a finite number that float32 can hold, got nan"),
    ("reward", from_step_3(1e39, 1.0), "reward: expected a finite number that float32 can hold, got 1e+39"),
    (
        "reward",
        from_step_3(np.float64(-np.inf), 1.0),
        "reward: expected a finite number that float32 can hold, got -inf",
    ),
    ("reward", from_step_3(None, 1.0), "reward: expected a number, got NoneType"),
    ("reward", from_step_3(np.zeros(2), 1.0), "reward: expected a number, got float64[2]"),
    ("reward", from_step_3("1", 1.0), "reward: expected a number, got str"),
    (
        "observe",
        from_step_3(np.array([0, np.nan], np.float32), X),
        "observation 'observation': expected finite numbers, got nan",
    ),
    (
        "observe",
        from_step_3(np.zeros(3, np.float32), X),
        "observation 'observation': expected float32[2], got float32[3]",
    ),
    ("observe", from_step_3(np.full(2, 1e300), X), "observation 'observation': expected finite numbers, got inf"),
    ("observe", from_step_3([0, "a"], X), "observation 'observation': expected float32[2], got "),
    ("observe", from_step_3(None, X), "observation 'observation': expected float32[2], got None"),
    ("info", from_step_3([1], {}), "info: expected a dict, got list"),
]


@pytest.mark.parametrize(("method", "replacement", "message"), RUN_FAILURES)
def test_a_failure_in_a_run_names_environment_and_step(method, replacement, message):
    maker = Maker(Patched, method=method, replacement=replacement)
    vector = envs.make_vec_env(maker, 3)
    vector.reset(seed=7)
    vector.step(np.ones(3, int))
    vector.step(np.ones(3, int))
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.ones(3, int))
    assert str(caught.value).startswith(f"Patched, environment 0, episode 0 (seed 7), step 3: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("two\nlines"), SystemExit(3), gym.error.Error("odd")])
def test_an_error_of_the_environment_becomes_one_line(error):
    def step(env, action):
        if env.seeds[-1] == 2 and env.t == 1:
            raise error
        return Counter.step(env, action)

    vector = envs.make_vec_env(Maker(Patched, method="step", replacement=step), 2)
    vector.reset(seed=1)
    vector.step(np.ones(2, int))
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.ones(2, int))
    problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert str(caught.value) == f"Patched, environment 1, episode 0 (seed 2), step 2: {problem}"
    assert caught.value.__cause__ is error


def test_interrupts_are_no_failures():
    def step(env, action):
        if env.t:
            raise KeyboardInterrupt
        return Counter.step(env, action)

    vector = envs.make_vec_env(Maker(Patched, method="step", replacement=step), 1)
    vector.reset(seed=1)
    vector.step(np.ones(1, int))
    with pytest.raises(KeyboardInterrupt):
        vector.step(np.ones(1, int))


def test_whole_numbers_outside_their_bounds_are_errors_and_real_numbers_give_one_warning():
    def observe(env):
        return np.full(2, 9 if env.t == 2 else 0, env.observation_space.dtype)

    def make_env(space):
        env = Patched("observe", observe)
        env.observation_space = space
        return env

    vector = envs.make_vec_env(lambda: make_env(spaces.Box(-1, 1, (2,), np.float32)), 3)
    vector.reset(seed=0)
    vector.step(np.zeros(3, int))
    with pytest.warns(EnvironmentWarning, match="'observation' is outside the bounds of its space") as warned:
        observation, *_ = vector.step(np.zeros(3, int))
    assert (observation["observation"] == 9).all()
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(5):
            vector.step(np.zeros(3, int))
    vector = envs.make_vec_env(lambda: make_env(spaces.Box(-1, 1, (2,), np.int64)), 3)
    vector.reset(seed=0)
    vector.step(np.zeros(3, int))
    with pytest.raises(envs.EnvironmentFailed, match=r"step 2: .*expected numbers in its space Box\(-1, 1, .*, got 9$"):
        vector.step(np.zeros(3, int))


class Lacking(Counter):
    observation_space = None

    def __init__(self):
        super().__init__()
        self.observation_space = None


class Noting(Counter):
    """Notes how it is called."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def reset(self, **options):
        self.calls.append(("reset", options["seed"]))
        return super().reset(**options)

    def step(self, action):
        self.calls.append(("step", self.t))
        return super().step(action)


def test_the_check_before_a_training_is_one_reset_and_one_step():
    env = Noting()
    adapted = envs.wrap_env(env)
    assert env.calls == [("reset", 0), ("step", 0)]
    adapted.reset(seed=7)
    vector = gym.vector.SyncVectorEnv([Noting] * 2, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    envs.wrap_vec_env(vector)
    assert [env.calls for env in vector.envs] == [[("reset", 0), ("step", 0)], [("reset", 1), ("step", 0)]]


INTERFACE_VIOLATIONS = [
    (Lacking, "Lacking: observation_space: expected a space of Gymnasium, got NoneType"),
    (lambda: Patched("reset", lambda env, **_: X), "Patched: reset: expected (observation, info), got float32[2]"),
    (lambda: Patched("reset", lambda env, **_: (X, 1)),
     "Patched: reset: expected (observation, info), got (ndarray, int)"),
    (lambda: Patched("reset", lambda env: X), "Patched: reset: TypeError: "),
    (lambda: Patched("reset", lambda env, seed: (X, {})), "Patched: reset: TypeError: "),
    (lambda: Patched("step", lambda env, action: (X, 1.0, False, {})),
     "Patched: step: expected five values, got (ndarray, float, bool, dict)"),
    (lambda: Patched("step", lambda env, action: None), "Patched: step: expected five values, got NoneType"),
    (lambda: Patched("step", lambda env, action: (X, 1.0, np.zeros(2), False, {})),
     "Patched: step: expected two flags, "),
    (lambda: Patched("observe", lambda env: np.zeros(5)), "Patched: observation 'observation': expected float32[2], "),
    (lambda: Patched("step", lambda env, action: 1 / 0), "Patched: ZeroDivisionError: division by zero"),
    (lambda: Stranger(action_space=spaces.Text(5)), "Stranger: action space: expected Discrete, MultiDiscrete, "),
    (lambda: Stranger(action_space=spaces.Box(0, 5, (2,), np.int64)), "Stranger: action space: expected Discrete, Mul"),
    (lambda: Stranger(spaces.Graph(spaces.Discrete(2), None)), "Stranger: observation space: expected Box, Discrete, "),
    (lambda: Stranger(spaces.Dict({"previous_action": spaces.Discrete(2)})),
     "Stranger: observation space: expected no part called 'previous_action', since the policy adds one of that name"),
    (lambda: 5, "<lambda>: expected a gymnasium.Env, got int"),
    (lambda: {}["wind"], "<lambda>: KeyError: 'wind'"),
    (lambda: (_ for _ in ()).throw(gym.error.DependencyNotInstalled("run `pip install wind`")),
     "<lambda>: run `pip install wind`"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), INTERFACE_VIOLATIONS)
@pytest.mark.parametrize("vectorization", [None, "sync", "async"])
def test_an_environment_that_breaks_the_interface_is_refused_before_it_runs(make, message, vectorization):
    with pytest.raises(envs.EnvError) as caught:
        if vectorization is None:
            envs.make_env(make)
        else:
            envs.make_vec_env(make, 2, vectorization=vectorization)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Horizon(Stranger):
    """An environment with a memory horizon."""

    def __init__(self, horizon: object = 40):
        super().__init__()
        self.memory_horizon = horizon


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_memory_horizon_is_the_environments(vectorization):
    """Through wrappers, also for the toolkit's tasks. `stretch=N` multiplies it by N + 1."""
    make = {"vectorization": vectorization}
    for id, kwargs, steps in (
        (Maker(Stranger), {}, None),
        (Maker(Horizon), {}, 40),
        ("Corridor-v0", {"max_length": 30}, 30),
    ):
        vector = envs.make_vec_env(id, 2, **make, **kwargs)
        assert vector.memory_horizon == steps
        vector.close()
    assert envs.make_vec_env(lambda: gym.wrappers.TimeLimit(Horizon(), 5), 1).memory_horizon == 40
    assert envs.make_vec_env(Maker(Horizon), 1, ["stretch=2"]).memory_horizon == 120


@pytest.mark.parametrize("horizon", [0, -3, 2.5, True, "long"])
def test_an_invalid_memory_horizon_is_refused(horizon):
    with pytest.raises(envs.EnvError) as caught:
        envs.make_vec_env(Maker(Horizon, horizon=horizon), 2)
    assert str(caught.value).endswith(
        f"memory_horizon: expected a whole number of steps of at least 1, or None, got {horizon!r}"
    )


def test_parts_that_are_not_read_are_named():
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": spaces.Graph(spaces.Discrete(2), None)})})
    vector = envs.make_vec_env(Maker(Stranger, observation_space=space), 2)
    assert vector.left_out == {"b/c": "a Graph"} == envs.wrap_env(Stranger(space)).left_out
    assert envs.make_vec_env("Corridor-v0", 2).left_out == {} == envs.make_env("Corridor-v0").left_out


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**70), episode=st.integers(0, 2**40))
def test_seeds_of_episodes_are_small_and_differ(seed, episode):
    env_seed = episode_seed(seed, episode)
    assert 0 <= env_seed < 2**31 and env_seed == episode_seed(seed, episode)
    assert (env_seed == seed) == (episode == 0 and seed < 2**31)
    assert episode_seed(seed, episode + 1) != env_seed


def test_episodes_do_not_depend_on_earlier_episodes():
    """Episode k of environment i has the same seed for all lengths of earlier episodes and all actions in them."""
    env_seeds = []
    for action in (0, 2):

        def step(env, action):
            for _ in range(int(action)):
                env.np_random.random()
            return Stranger.step(env, action)

        maker = Maker(Patched, method="step", replacement=step, length=3)
        vector = envs.make_vec_env(maker, 2)
        vector.reset(seed=2**40)
        for _ in range(9):
            vector.step(np.full(2, action))
        env_seeds.append([env.unwrapped.seeds[-4:] for env in vector.unwrapped.envs])
    assert env_seeds[0] == env_seeds[1]
    assert env_seeds[0][1] == [episode_seed(2**40 + 1, k) for k in range(4)]


def test_a_reset_without_a_seed_begins_the_next_episode_and_the_first_one_is_random():
    env = adapt(Stranger())
    env.reset()
    random_seed = env.unwrapped.seeds[-1]
    env.reset()
    assert env.unwrapped.seeds[-1] == episode_seed(random_seed, 1)
    env.reset(seed=9)
    env.reset()
    assert env.unwrapped.seeds[-2:] == [9, episode_seed(9, 1)]
    assert adapt(Stranger()).reset()[0]["observation"].tolist() != adapt(Stranger()).reset()[0]["observation"].tolist()


def test_time_limits_of_gym_make_are_respected():
    gym.register("Limited-v0", Counter, max_episode_steps=4, kwargs={"length": 100})
    try:
        for vectorization in ("auto", "async"):
            vector = envs.make_vec_env("Limited-v0", 2, vectorization=vectorization)
            vector.reset(seed=0)
            ends = [vector.step(np.zeros(2, int))[2:4] for _ in range(8)]
            vector.close()
            assert [t.tolist() for t, _ in ends] == [[False] * 2] * 8
            assert [u.tolist() for _, u in ends] == ([[False] * 2] * 3 + [[True] * 2]) * 2
    finally:
        del gym.registry["Limited-v0"]


@pytest.mark.parametrize("id", envs.env_ids())
@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_time_limit_around_a_toolkit_task_ends_episodes_that_count(id, vectorization):
    """As no success, with what the task says of its episodes."""
    vector = envs.make_vec_env(lambda: gym.make(id, max_episode_steps=2), 2, vectorization=vectorization)
    vector.reset(seed=0)
    vector.step(np.zeros(2, int))
    *_, truncated, infos = vector.step(np.zeros(2, int))
    vector.close()
    assert truncated.all() and infos["_final_info"].all()
    assert (infos["final_info"][vector.metadata["difficulty_key"]] >= 0).all()
    assert not np.any(infos["final_info"].get("is_success", False))


def test_a_toolkit_task_in_a_users_wrapper_keeps_its_shaping():
    kwargs = {"progress_reward": 0.1}
    task = envs.make_env("Portal-v0", **kwargs)
    wrapped = envs.wrap_env(gym.wrappers.TransformReward(gym.make("Portal-v0", **kwargs), lambda reward: reward))
    assert isinstance(wrapped.env, AdaptedEnv)
    assert task.observation_space["image"] == wrapped.observation_space["image"]
    task.reset(seed=0)
    wrapped.reset(seed=0)
    rng = np.random.default_rng(0)
    num_shaped = 0
    for _ in range(40):
        action = int(rng.integers(4))
        expected, expected_reward, *_ = task.step(action)
        observation, reward, terminated, truncated, _ = wrapped.step(action)
        assert (reward, observation["previous_reward"]) == (expected_reward, expected["previous_reward"])
        num_shaped += reward != observation["previous_reward"]
        if terminated or truncated:
            break
    assert num_shaped > 0
