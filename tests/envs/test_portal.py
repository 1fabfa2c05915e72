"""That Portal asks for memory: an oracle's steps, chance's failure, doors that tell nothing; its draws, its rewards,
its picture."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from minigrid.core.grid import Grid
from minigrid.core.world_object import Goal

from expire_span_rl import envs
from expire_span_rl.envs.env_wrappers import VectorPreviousActionReward
from expire_span_rl.envs.portal import HOME, THINGS, Portal, PortalEnv, PortalVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH


def play(core: Portal, choose, episodes: int) -> dict[str, np.ndarray]:
    """Final infos of one episode of each environment; `choose` gives the y of the door to take: (core) -> [B]."""
    core.reset(np.arange(core.num_envs), np.arange(core.num_envs) + 1000 * episodes)
    told, open_ = {}, np.ones(core.num_envs, bool)
    while open_.any():
        at_doors = core.x == core.room_length - 1
        core.step(np.where(at_doors, np.where(choose(core) < 0, NORTH, SOUTH), EAST))
        ended = core.over & open_
        for key, array in core.final_info().items():
            told.setdefault(key, np.zeros_like(array))[ended] = array[ended]
        open_ &= ~ended
        core.reset(np.flatnonzero(core.over))
    return told


class Oracle:
    """Perfect memory: the door that is known to lead on, and where none is known one at random."""

    def __init__(self, num_envs: int, max_rooms: int) -> None:
        self.known = np.zeros((num_envs, max_rooms), int)
        self.rng = np.random.default_rng(0)

    def __call__(self, core: Portal) -> np.ndarray:
        here = np.arange(core.num_envs)
        known = self.known[here, core.room]
        door = np.where(known, known, self.rng.choice([-1, 1], core.num_envs))
        tried = core.x == core.room_length - 1  # whichever it takes, it knows afterwards which one leads on
        self.known[here[tried], core.room[tried]] = core.right[here[tried], core.room[tried]]
        return door


@pytest.mark.parametrize(("rooms", "room_length"), [(1, 3), (4, 3), (10, 5), (50, 2)])
def test_an_agent_that_remembers_takes_the_oracles_steps(rooms, room_length):
    n = 4000 if rooms < 50 else 400
    core = Portal(n, min_rooms=rooms, max_rooms=rooms, room_length=room_length)
    told = play(core, Oracle(n, rooms), 1)
    steps = told["agent_steps"]
    assert told["is_success"].all() and not told["repeated_mistakes"].any()
    expected = room_length * (rooms + rooms * (rooms + 1) / 4)
    assert (told["oracle_steps"] == expected).all() and (told["step_limit"] == 4 * expected).all()
    assert abs(steps.mean() - expected) < 4 * steps.std() / np.sqrt(n)
    assert abs(told["wrong_doors"].mean() - rooms / 2) < 4 * np.sqrt(rooms / 4 / n)
    assert core.memory_horizon == int(np.ceil(expected))


def test_trying_doors_at_random_fails_with_many_rooms():
    rng = np.random.default_rng(0)
    for rooms, low, high in ((1, 0.95, 1.0), (10, 0.0, 0.15), (20, 0.0, 0.001)):
        core = Portal(1000, min_rooms=rooms, max_rooms=rooms)
        told = play(core, lambda core: rng.choice([-1, 1], core.num_envs), 1)
        assert low <= told["is_success"].mean() <= high
        assert (told["agent_steps"][~told["is_success"]] == told["step_limit"][~told["is_success"]]).all()


def drawn(num_envs: int, seed: int = 0, **kwargs) -> Portal:
    """A core in which each environment has begun its first episode."""
    core = Portal(num_envs, **kwargs)
    core.reset(np.arange(num_envs), np.arange(num_envs) + seed)
    return core


def at_the_doors(core: Portal, room: int) -> np.ndarray:
    """What all see between the doors of a room."""
    core.room[:], core.x[:] = room, core.room_length - 1
    return core.observe()


def test_landmarks_are_unique_in_the_episode_and_seen_at_the_decision():
    core = drawn(200, min_rooms=50, max_rooms=50)
    seen = np.array([at_the_doors(core, room) for room in range(50)])  # [rooms, B, 3, 3, 3]
    landmarks = seen[:, :, 2]
    np.testing.assert_array_equal(landmarks, THINGS[core.landmark.transpose(2, 0, 1)])
    same = (landmarks[:, None] == landmarks[None]).all(-1).sum(-1)  # [rooms, rooms, B]: in so many places
    assert (same[np.arange(50), np.arange(50)] == 3).all()
    assert same[~np.eye(50, dtype=bool)].max() == 1
    first = same[:18, :18]
    assert first[~np.eye(18, dtype=bool)].max() == 0
    counts = np.bincount(core.landmark[:, :, 7].ravel(), minlength=18)
    assert counts.min() > 0.5 * counts.mean()


def test_the_first_room_is_recognised_and_no_other_is_from_its_first_tile():
    core = drawn(50, min_rooms=10)
    for room in range(10):
        core.room[:], core.x[:] = room, 0
        image = core.observe()
        assert (image == HOME).all(-1).any((1, 2)).tolist() == [room == 0] * 50
        assert len(np.unique(image.reshape(50, -1), axis=0)) == 1


def test_nothing_that_is_seen_tells_which_door_leads_on():
    """The doors exchange their parts and no observation of any tile changes; and the parts are fair and independent."""
    core = drawn(20_000, min_rooms=4, max_rooms=4)
    for room in range(4):
        for x in range(3):
            core.room[:], core.x[:] = room, x
            before = core.observe()
            core.right *= -1
            np.testing.assert_array_equal(core.observe(), before)
    north_leads_on = core.right < 0  # [B, rooms]
    colour = core.north == 0
    facts = np.concatenate([north_leads_on, colour, core.landmark[:, 1, :1] < 9, core.landmark[:, 2, :1] < 9], 1)
    correlation = np.corrcoef(facts.T.astype(float)) - np.eye(10)
    assert abs(correlation).max() < 4.5 / np.sqrt(20_000)
    assert abs(facts.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(20_000)


def test_rooms_are_drawn_uniformly_and_an_episode_does_not_depend_on_how_many_may_be():
    core = drawn(20_000, min_rooms=3, max_rooms=7)
    counts = np.bincount(core.rooms, minlength=8)[3:]
    assert counts.sum() == 20_000 and abs(counts - 4000).max() < 4 * np.sqrt(4000)
    more = drawn(20_000, max_rooms=50)
    np.testing.assert_array_equal(more.right[:, :7], core.right)
    np.testing.assert_array_equal(more.north[:, :7], core.north)
    np.testing.assert_array_equal(more.landmark[:, :, :7], core.landmark)


def test_log_uniform_rooms_favour_short_chains():
    """P(rooms) ~ log((rooms + 1) / rooms), within four standard deviations."""
    core = drawn(20_000, min_rooms=3, max_rooms=7, rooms_distribution="log_uniform")
    rooms = np.arange(3, 8)
    expected = np.log((rooms + 1) / rooms) / np.log(8 / 3)
    counted = (core.rooms == rooms[:, None]).mean(1)
    assert (abs(counted - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    assert counted.sum() == pytest.approx(1)


def walk(core: Portal, wrong: bool = False) -> list[int]:
    """The moves through the room in which environment 0 begins."""
    return [EAST] * (core.room_length - 1) + [NORTH if (core.right[0, core.room[0]] < 0) != wrong else SOUTH]


def test_progress_is_paid_once_per_room_and_the_previous_reward_does_not_tell_it():
    kwargs = {"min_rooms": 3, "max_rooms": 3, "progress_reward": 0.25}
    env, vector = envs.make_env("Portal-v0", **kwargs), envs.make_vec_env("Portal-v0", 1, **kwargs)
    env.reset(seed=5)
    vector.reset(seed=5)
    core = env.unwrapped.core
    paid = []
    for wrong in (False, True, False, False, False):  # into room 1, back, into rooms 1 and 2, and out
        for action in walk(core, wrong):
            observation, reward, terminated, _, info = env.step(action)
            batched, rewards, *_, infos = vector.step(np.array([action]))
            paid.append((reward, info["shaping"], float(observation["previous_reward"])))
            if terminated:
                batched = infos["final_obs"]
            assert (rewards[0], batched["previous_reward"][0]) == (reward, observation["previous_reward"])
    at_doors = [(0.25, 0.25, 0), (0, 0, 0), (0, 0, 0), (0.25, 0.25, 0), (1, 0, 1)]
    assert paid == [step for last in at_doors for step in ((0, 0, 0), (0, 0, 0), last)]
    assert terminated and infos["final_info"]["wrong_doors"][0] == 1


def test_shaping_is_told_as_gymnasiums_vectors_tell_it():
    """Against SyncVectorEnv over the single face, also when an episode is cut off at the step that pays progress."""
    kwargs = {"max_rooms": 3, "progress_reward": 0.25, "max_steps": 9}
    vector = PortalVectorEnv(4, **kwargs)
    singles = SyncVectorEnv([lambda: gym.make("Portal-v0", **kwargs)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    wrapped = VectorPreviousActionReward(
        SyncVectorEnv([lambda: gym.make("Portal-v0", **kwargs)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    for env in (vector, singles, wrapped):
        env.reset(seed=0)
    rng = np.random.default_rng(0)
    last = 0
    for _ in range(600):
        actions = rng.choice([NORTH, EAST, EAST, SOUTH], 4)
        *_, infos = vector.step(actions)
        *_, expected = singles.step(actions)
        observation, reward, *_, wrapped_infos = wrapped.step(actions)
        assert infos.keys() == expected.keys()
        for told, wanted in ((infos, expected), (infos.get("final_info", {}), expected.get("final_info", {}))):
            if "shaping" in wanted:
                np.testing.assert_array_equal(told["_shaping"], wanted["_shaping"])
                np.testing.assert_array_equal(told["shaping"] * told["_shaping"], wanted["shaping"])
        if "final_obs" in infos:
            seen = wrapped_infos["final_obs"]["previous_reward"][infos["_final_obs"]]
            paid = infos["final_info"]["shaping"][infos["_final_obs"]]
            last += np.count_nonzero(paid)
            np.testing.assert_allclose(seen, reward[infos["_final_obs"]] - paid)
        assert set(observation["previous_reward"]) <= {0, 1}
    assert last > 0


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_rooms": 51}, "max_rooms: expected a whole number from 1 to 50, got 51"),
        ({"min_rooms": 0}, "min_rooms: expected a whole number from 1 to 50, got 0"),
        ({"rooms_distribution": "log"}, "rooms_distribution: expected one of 'uniform', 'log_uniform', got 'log'"),
        ({"min_rooms": 5, "max_rooms": 4}, "min_rooms: expected at most max_rooms (4), got 5"),
        ({"room_length": 1}, "room_length: expected a whole number from 2 to 100, got 1"),
        ({"progress_reward": -1}, "progress_reward: expected a finite number of at least 0, got -1"),
        ({"progress_reward": float("nan")}, "progress_reward: expected a finite number of at least 0, got nan"),
        (
            {"progress_reward": 10**400},
            f"progress_reward: expected a finite number of at least 0, got {str(10**400)[:60]}...",
        ),
        ({"progress_reward": "much"}, "progress_reward: expected a finite number of at least 0, got 'much'"),
        ({"view_size": 4}, "view_size: expected an odd number, so that the agent is in the middle, got 4"),
        ({"max_steps": 0}, "max_steps: expected a whole number from 1 to 1000000000, got 0"),
    ],
)
def test_bad_settings_are_told_in_one_line(kwargs, message):
    for make in (lambda: envs.make_env("Portal-v0", **kwargs), lambda: envs.make_vec_env("Portal-v0", 2, **kwargs)):
        with pytest.raises(envs.EnvError) as caught:
            make()
        assert str(caught.value) == message


def test_the_picture_shows_the_chain_with_the_agents_room_lit_and_no_other():
    env = PortalEnv(render_mode="rgb_array", min_rooms=2, max_rooms=3)
    env.reset(seed=0)
    before = env.render()
    assert before.shape == (3 * 32, 3 * 5 * 32, 3)
    columns = before.reshape(3, 32, 15, 32, 3).transpose(2, 0, 1, 3, 4)  # [column, line, ...]
    np.testing.assert_array_equal(columns[0, 1], Grid.render_tile(Goal(), highlight=True).astype(np.uint8))
    env.core.room[0] = 1
    after = env.render().reshape(3, 32, 15, 32, 3).transpose(2, 0, 1, 3, 4)
    changed = [column for column in range(15) if (columns[column] != after[column]).any()]
    assert changed == [0, 1, 2, 5, 6, 7]


def test_what_was_tried_decides_between_the_doors_of_a_room_that_is_known():
    core = Portal(1, min_rooms=2, max_rooms=2, room_length=2)
    core.reset(np.arange(1), np.zeros(1, np.int64))
    wrong, right = (SOUTH, NORTH) if core.right[0, 0] < 0 else (NORTH, SOUTH)
    told = []
    for action in (EAST, wrong, EAST, right, EAST, EAST):
        told.append(bool(core.decisions()[0]))
        core.step(np.array([action]))
    assert told == [False, False, False, True, False, False]  # the second room's doors are new
    assert core.facts() is None and core.swap_observation(core.observe()) is None


def test_progress_is_not_rewarded_unless_asked_for():
    assert Portal(1).progress_reward == 0.0
