"""Environments of other packages: every space, copies, checked values, plain infos, episodes of their own, one-line
errors."""

from __future__ import annotations

import itertools
import warnings

import gymnasium as gym
import numpy as np
import pytest
from env_cases import ACTIONS, LEAVES, Batch, Counter, Maker, Patched, Stranger
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from expire_span_rl import envs
from expire_span_rl.envs.gym_adapter import AdaptedEnv, EnvironmentWarning, adapt, episode_seed, plain_info
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
    """The single form and the vector agree, entry by entry, with what the environment itself drew."""
    space = NESTS[nest](LEAVES[leaf])
    vector = envs.make_vec_env(Maker(Stranger, observation_space=space, length=3), 2)
    single, bare = envs.wrap_env(Stranger(space, length=3)), Stranger(space, length=3)
    assert vector.single_observation_space == single.observation_space
    assert vector.left_out == single.left_out == {}
    batch, _ = vector.reset(seed=5)
    one, _ = single.reset(seed=6)
    raw, _ = bare.reset(seed=6)
    expected = {"bare": 1, "dict": 2, "tuple": 2, "dict_of_tuple": 3, "tuple_of_dict": 3}[nest]
    for step in range(1, 8):
        assert vector.observation_space.contains(batch) and single.observation_space.contains(one)
        assert len(one) == expected + 2
        for name, value in one.items():
            np.testing.assert_array_equal(batch[name][1], value)
        part = {
            "bare": lambda o: o,
            "dict": lambda o: o["a"],
            "tuple": lambda o: o[0],
            "dict_of_tuple": lambda o: o["a"][1],
            "tuple_of_dict": lambda o: o[0]["a"],
        }[nest](raw)
        name = {"bare": "image" if leaf in ("picture", "channels_first") else "observation", "dict": "a", "tuple": "0"}
        entry = one[name.get(nest, {"dict_of_tuple": "a/1", "tuple_of_dict": "0/a"}.get(nest))]
        if leaf != "text":
            np.testing.assert_array_equal(entry, part)
        batch, *_ = vector.step(np.array([0, 2]))
        one, _, over, _, _ = single.step(2)
        if over:
            one, _ = single.reset()
            raw, _ = bare.reset(seed=episode_seed(6, step // 3))
        else:
            raw, *_ = bare.step(2)


@pytest.mark.parametrize("name", ACTIONS)
def test_every_action_space(name):
    """Actions reach the environment as they are, and come back as the previous action."""
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
        one, paid, *_ = single.step(actions[0])
        assert vector.observation_space.contains(observation) and single.observation_space.contains(one)
        shown = infos["final_obs"] if terminated[0] else observation
        for b in range(2):
            np.testing.assert_array_equal(shown["previous_action"][b], previous_action(space, actions[b]))
            assert reward[b] == pytest.approx(np.sum(actions[b]) + (step - 1) % 3 + 1)
        np.testing.assert_array_equal(one["previous_action"], shown["previous_action"][0])
        assert shown["previous_reward"][0] == np.float32(paid) == one["previous_reward"]
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
    one, _ = single.reset(seed=4)
    vector.action_space.seed(0)
    endings = 0
    for _ in range(20):
        for entry, value in one.items():
            np.testing.assert_array_equal(batch[entry][1], value)
        actions = vector.action_space.sample()
        batch, reward, terminated, _, infos = vector.step(actions)
        one, paid, over, _, _ = single.step(actions[1])
        assert (reward[1], terminated[1]) == (paid, over)
        assert single.render().shape == (16, 16, 3)
        if over:
            endings += 1
            for entry, value in one.items():
                np.testing.assert_array_equal(infos["final_obs"][entry][1], value)
            one, _ = single.reset()
    assert endings >= 2


def test_a_buffer_that_is_written_to_again_changes_nothing_that_was_returned():
    for vectorization in ("auto", "sync"):
        vector = envs.make_vec_env(Maker(Counter, length=3), 2, vectorization=vectorization)
        shown = [vector.reset(seed=0)[0]["observation"]]
        finals = []
        for _ in range(6):
            observation, *_, infos = vector.step(np.zeros(2, int))
            shown.append(observation["observation"])
            if "final_obs" in infos:
                finals.append(infos["final_obs"]["observation"])
        assert [batch[0, 0] for batch in shown] == [0, 1, 2, 0, 1, 2, 0]
        assert [batch[1, 1] for batch in finals] == [3, 3]


def test_actions_may_be_written_to():
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
        "number": 3, "share": np.float32(0.5), "flag": np.bool_(True), "array": np.array(2.5), "text": "won", "none": None,
        "list": [1, 2], "ragged": np.arange(3), "nested": {"a": 1}, "_private": 1, "shaping": 0.5, "final_obs": 1, 5: 1,
        "one": np.array([1]), "huge": 2**100,
    }  # fmt: skip
    plain = {"number": 3, "share": 0.5, "flag": True, "array": 2.5, "text": "won", "huge": 2**100}
    assert plain_info(info) == plain
    assert plain_info(info, shaping=True) == {**plain, "shaping": 0.5}


def test_infos_of_different_kinds_meet_in_one_vector():
    """What an environment says differs from row to row and from step to step: whole numbers, reals, texts, nothing."""
    values = [1, 0.5, "won", None, [1], np.arange(2), True, 2**100]

    def info(env):
        said = {"said": values[(env.seeds[-1] + env.t) % len(values)] if env.seeds[-1] is not None else 1}
        return {**said, "visited": np.arange(1 + env.t), "shaping": 5.0, "mixed": 1 if env.t % 2 else 0.5}

    vector = envs.make_vec_env(Maker(Patched, method="info", replacement=info, length=4), 8)
    vector.reset(seed=0)
    for step in range(1, 9):
        observation, reward, terminated, _, infos = vector.step(np.ones(8, int))
        shown = infos["final_obs"] if terminated.all() else observation
        np.testing.assert_array_equal(shown["previous_reward"], reward)  # a stranger's `shaping` is none of ours
        said = infos["final_info"] if terminated.all() else infos
        assert "visited" not in said and "shaping" not in said
        assert said["mixed"].tolist() == [1 if ((step - 1) % 4 + 1) % 2 else 0.5] * 8
        assert said["_said"].shape == (8,)
        if step < 4:
            expected = [values[(b + step) % 8] for b in range(8)]
            assert [said["said"][b] for b in range(8) if said["_said"][b]] == [
                value for value in expected if value is not None and not isinstance(value, (list, np.ndarray))
            ]


@pytest.mark.parametrize(
    "reward", [1, np.float32(1), np.array(1.0), np.array([1.0], np.float32), np.array([[1]]), True]
)
def test_rewards_that_are_a_number(reward):
    vector = envs.make_vec_env(Maker(Patched, method="reward", replacement=lambda env, action: reward), 2)
    vector.reset(seed=0)
    assert vector.step(np.zeros(2, int))[1].tolist() == [1.0, 1.0]


def late(value, first, at=3):
    """`value` from step `at` on, `first` before."""
    return lambda env, *_: value if env.t >= at else first


X = np.zeros(2, np.float32)
WRONG = [
    (
        "reward",
        lambda env, *_: 1e39 if env.seeds[-1] == 7 and env.t > 2 else float("nan") if env.seeds[-1] == 0 else 1.0,
        "reward: expected a finite number that float32 can hold, got 1e+39",
    ),
    ("reward", late(float("nan"), 1.0), "reward: expected a finite number that float32 can hold, got nan"),
    ("reward", late(1e39, 1.0), "reward: expected a finite number that float32 can hold, got 1e+39"),
    ("reward", late(np.float64(-np.inf), 1.0), "reward: expected a finite number that float32 can hold, got -inf"),
    ("reward", late(None, 1.0), "reward: expected a number, got NoneType"),
    ("reward", late(np.zeros(2), 1.0), "reward: expected a number, got float64[2]"),
    ("reward", late("1", 1.0), "reward: expected a number, got str"),
    (
        "observe",
        late(np.array([0, np.nan], np.float32), X),
        "observation 'observation': expected finite numbers, got nan",
    ),
    ("observe", late(np.zeros(3, np.float32), X), "observation 'observation': expected float32[2], got float32[3]"),
    ("observe", late(np.full(2, 1e300), X), "observation 'observation': expected finite numbers, got inf"),
    ("observe", late([0, "a"], X), "observation 'observation': expected float32[2], got "),
    ("observe", late(None, X), "observation 'observation': expected float32[2], got None"),
    ("info", late([1], {}), "info: expected a dict, got list"),
]


@pytest.mark.parametrize(("method", "replacement", "message"), WRONG)
def test_what_goes_wrong_in_a_run_is_told_with_environment_and_step(method, replacement, message):
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
def test_what_an_environment_raises_is_told_in_one_line(error):
    def step(env, action):
        if env.seeds[-1] == 2 and env.t == 1:
            raise error
        return Counter.step(env, action)

    vector = envs.make_vec_env(Maker(Patched, method="step", replacement=step), 2)
    vector.reset(seed=1)
    vector.step(np.ones(2, int))
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.ones(2, int))
    told = f"{type(error).__name__}: {' '.join(str(error).split())}"
    assert str(caught.value) == f"Patched, environment 1, episode 0 (seed 2), step 2: {told}"
    assert caught.value.__cause__ is error


def test_interrupts_are_not_taken_for_failures():
    def step(env, action):
        if env.t:
            raise KeyboardInterrupt
        return Counter.step(env, action)

    vector = envs.make_vec_env(Maker(Patched, method="step", replacement=step), 1)
    vector.reset(seed=1)
    vector.step(np.ones(1, int))
    with pytest.raises(KeyboardInterrupt):
        vector.step(np.ones(1, int))


def test_whole_numbers_outside_are_refused_and_real_ones_told_once():
    def outside(env):
        return np.full(2, 9 if env.t == 2 else 0, env.observation_space.dtype)

    def made(space):
        env = Patched("observe", outside)
        env.observation_space = space
        return env

    vector = envs.make_vec_env(lambda: made(spaces.Box(-1, 1, (2,), np.float32)), 3)
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
    vector = envs.make_vec_env(lambda: made(spaces.Box(-1, 1, (2,), np.int64)), 3)
    vector.reset(seed=0)
    vector.step(np.zeros(3, int))
    with pytest.raises(envs.EnvironmentFailed, match=r"step 2: .*expected numbers in its space Box\(-1, 1, .*, got 9$"):
        vector.step(np.zeros(3, int))


class Lacking(Counter):
    observation_space = None

    def __init__(self):
        super().__init__()
        self.observation_space = None


CONTRACT = [
    (Lacking, "Lacking: observation_space: expected a space of Gymnasium, got NoneType"),
    (lambda: Patched("reset", lambda env, **_: X), "Patched: reset: expected (observation, info), got float32[2]"),
    (lambda: Patched("reset", lambda env, **_: (X, 1)), "Patched: reset: expected (observation, info), got (ndarray, int)"),
    (lambda: Patched("reset", lambda env: X), "Patched: reset: TypeError: "),
    (lambda: Patched("step", lambda env, action: (X, 1.0, False, {})),
     "Patched: step: expected five values, got (ndarray, float, bool, dict)"),
    (lambda: Patched("step", lambda env, action: None), "Patched: step: expected five values, got NoneType"),
    (lambda: Patched("step", lambda env, action: (X, 1.0, np.zeros(2), False, {})), "Patched: step: expected two flags, "),
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


@pytest.mark.parametrize(("make", "message"), CONTRACT)
@pytest.mark.parametrize("vectorization", [None, "sync", "async"])
def test_an_environment_that_breaks_the_contract_is_refused_before_it_runs(make, message, vectorization):
    with pytest.raises(envs.EnvError) as caught:
        if vectorization is None:
            envs.make_env(make)
        else:
            envs.make_vec_env(make, 2, vectorization=vectorization)
    told = str(caught.value)
    assert told.startswith(message)
    assert "\n" not in told


class Horizon(Stranger):
    """One that says for how long facts must last."""

    def __init__(self, horizon: object = 40):
        super().__init__()
        self.memory_horizon = horizon


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_how_long_facts_must_last_is_asked_of_the_environment(vectorization):
    """Through wrappers, for our own tasks too, and N + 1 times as long where N steps come between two."""
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
def test_a_horizon_that_is_no_number_of_steps_is_refused(horizon):
    with pytest.raises(envs.EnvError) as caught:
        envs.make_vec_env(Maker(Horizon, horizon=horizon), 2)
    assert str(caught.value).endswith(
        f"memory_horizon: expected a whole number of steps of at least 1, or None, got {horizon!r}"
    )


def test_what_is_left_out_is_named():
    space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": spaces.Graph(spaces.Discrete(2), None)})})
    vector = envs.make_vec_env(Maker(Stranger, observation_space=space), 2)
    assert vector.left_out == {"b/c": "a Graph"} == envs.wrap_env(Stranger(space)).left_out
    assert envs.make_vec_env("Corridor-v0", 2).left_out == {} == envs.make_env("Corridor-v0").left_out


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**70), episode=st.integers(0, 2**40))
def test_seeds_of_episodes_are_small_and_their_own(seed, episode):
    drawn = episode_seed(seed, episode)
    assert 0 <= drawn < 2**31 and drawn == episode_seed(seed, episode)
    assert (drawn == seed) == (episode == 0 and seed < 2**31)
    assert episode_seed(seed, episode + 1) != drawn


def test_episodes_do_not_depend_on_what_was_played_before():
    """Episode k of environment i begins alike, however long the episodes before were and whatever was done in them."""
    begun = []
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
        begun.append([env.unwrapped.seeds[-4:] for env in vector.unwrapped.envs])
    assert begun[0] == begun[1]
    assert begun[0][1] == [episode_seed(2**40 + 1, k) for k in range(4)]


def test_a_reset_without_a_seed_goes_on_and_a_first_one_is_random():
    env = adapt(Stranger())
    env.reset()
    first = env.unwrapped.seeds[-1]
    env.reset()
    assert env.unwrapped.seeds[-1] == episode_seed(first, 1)
    env.reset(seed=9)
    env.reset()
    assert env.unwrapped.seeds[-2:] == [9, episode_seed(9, 1)]
    assert adapt(Stranger()).reset()[0]["observation"].tolist() != adapt(Stranger()).reset()[0]["observation"].tolist()


def test_time_limits_that_make_sets_are_kept():
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


def test_a_batch_of_a_stranger():
    """Flat entries, plain infos, no shaping, and the last observation where an episode ended."""
    vector = envs.wrap_vec_env(Batch())
    assert list(vector.single_observation_space) == ["inner/clock", "inner/n", "previous_action", "previous_reward"]
    observation, _ = vector.reset(seed=2**40)
    assert vector.env.env.seed < 2**31
    clock = np.zeros(3, int)
    for step in range(12):
        actions = np.full(3, step % 3)
        observation, reward, terminated, _, infos = vector.step(actions)
        assert vector.observation_space.contains(observation)
        clock += 1
        over = clock == [2, 3, 4]
        np.testing.assert_array_equal(terminated, over)
        np.testing.assert_array_equal(reward, clock)
        assert "ragged" not in infos and "shaping" not in infos
        np.testing.assert_array_equal(infos["speed"], clock * 0.5)
        if over.any():
            final = infos["final_obs"]
            np.testing.assert_array_equal(final["inner/clock"][over, 0], clock[over])
            np.testing.assert_array_equal(final["inner/n"][over], 1 + clock[over])
            np.testing.assert_array_equal(final["previous_reward"][over], clock[over])
            np.testing.assert_array_equal(infos["final_info"]["is_success"][over], step % 3 == 1)
            assert "shaping" not in infos["final_info"]
        clock[over] = 0
        np.testing.assert_array_equal(observation["inner/clock"][:, 0], clock)
        np.testing.assert_array_equal(observation["previous_action"], np.where(over, 3, actions))


BROKEN = [
    ({"at": 1, "value": np.array([1.0, np.nan, 1.0])}, "environment 1, step 4 after the reset: reward: expected a finite "),
    ({"at": 1, "value": np.zeros(2)}, "step 4 after the reset: reward: expected 3 numbers, got float64[2]"),
    ({"at": 2, "value": None}, "step 4 after the reset: step: expected 3 flags, got object[]"),
    ({"at": 0, "value": {"inner": {"clock": np.zeros((3, 1), np.float32), "n": np.array([1, 1, 10])}}},
     "environment 2, step 4 after the reset: observation 'inner/n': expected numbers in its space Discrete(9, start=1), got 10"),
    ({"at": 0, "value": {"inner": {"n": np.ones(3, int)}}}, "observation 'inner/clock': expected such a part, "),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_what_a_batch_does_wrong(broken, message):
    vector = envs.wrap_vec_env(Batch(**broken))
    vector.reset(seed=0)
    for _ in range(3):
        vector.step(np.zeros(3, int))
    with pytest.raises(envs.EnvironmentFailed) as caught:
        vector.step(np.zeros(3, int))
    assert str(caught.value).startswith("Batch") and message in str(caught.value)


def test_an_environments_own_vector_form_is_used_where_it_can_reset_in_the_same_step():
    gym.register("Own-v0", Counter, vector_entry_point=Batch)
    try:
        assert isinstance(envs.make_vec_env("Own-v0", 3).unwrapped, Batch)
        assert not isinstance(envs.make_vec_env("Own-v0", 3, vectorization="sync").unwrapped, Batch)
    finally:
        del gym.registry["Own-v0"]
    assert len(envs.make_vec_env("CartPole-v1", 2).unwrapped.envs) == 2  # its own resets in the next step


def test_a_task_of_ours_in_a_users_wrapper_keeps_its_shaping():
    kwargs = {"progress_reward": 0.1}
    plain = envs.make_env("Portal-v0", **kwargs)
    wrapped = envs.wrap_env(gym.wrappers.TransformReward(gym.make("Portal-v0", **kwargs), lambda reward: reward))
    assert isinstance(wrapped.env, AdaptedEnv)
    assert plain.observation_space["image"] == wrapped.observation_space["image"]
    plain.reset(seed=0)
    wrapped.reset(seed=0)
    rng, paid = np.random.default_rng(0), 0
    for _ in range(40):
        action = int(rng.integers(4))
        expected, reward, *_ = plain.step(action)
        seen, other, terminated, truncated, _ = wrapped.step(action)
        assert (reward, expected["previous_reward"]) == (other, seen["previous_reward"])
        paid += reward != seen["previous_reward"]
        if terminated or truncated:
            break
    assert paid > 0
