"""Portal needs memory: the oracle's steps, failure at chance, doors that reveal nothing. Also its draws, rewards and
picture."""

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
    """Final infos of one episode of each environment. choose: (core) -> y of the door to take [B]."""
    core.reset(np.arange(core.num_envs), np.arange(core.num_envs) + 1000 * episodes)
    info = {}
    is_running = np.ones(core.num_envs, bool)
    while is_running.any():
        at_doors = core.x == core.room_length - 1
        core.step(np.where(at_doors, np.where(choose(core) < 0, NORTH, SOUTH), EAST))
        done = core.over & is_running
        for key, array in core.final_info().items():
            info.setdefault(key, np.zeros_like(array))[done] = array[done]
        is_running &= ~done
        core.reset(np.flatnonzero(core.over))
    return info


class Oracle:
    """Perfect memory: takes the door that is known to lead on, and a random one if no door is known."""

    def __init__(self, num_envs: int, max_rooms: int) -> None:
        self.known_doors = np.zeros((num_envs, max_rooms), int)  # y of the right door, 0 if unknown
        self.rng = np.random.default_rng(0)

    def __call__(self, core: Portal) -> np.ndarray:
        known_door = self.known_doors[np.arange(core.num_envs), core.room]
        door = np.where(known_door, known_door, self.rng.choice([-1, 1], core.num_envs))
        rows = np.flatnonzero(core.x == core.room_length - 1)  # any door that they take shows which one leads on
        self.known_doors[rows, core.room[rows]] = core.right[rows, core.room[rows]]
        return door


@pytest.mark.parametrize(("rooms", "room_length"), [(1, 3), (4, 3), (10, 5), (50, 2)])
def test_an_agent_that_remembers_takes_the_oracles_steps(rooms, room_length):
    n = 4000 if rooms < 50 else 400
    core = Portal(n, min_rooms=rooms, max_rooms=rooms, room_length=room_length)
    info = play(core, Oracle(n, rooms), 1)
    steps = info["agent_steps"]
    assert info["is_success"].all() and not info["repeated_mistakes"].any()
    expected = room_length * (rooms + rooms * (rooms + 1) / 4)
    assert (info["oracle_steps"] == expected).all() and (info["step_limit"] == 4 * expected).all()
    assert abs(steps.mean() - expected) < 4 * steps.std() / np.sqrt(n)
    assert abs(info["wrong_doors"].mean() - rooms / 2) < 4 * np.sqrt(rooms / 4 / n)
    assert core.memory_horizon == int(np.ceil(expected))


def test_random_doors_fail_with_many_rooms():
    rng = np.random.default_rng(0)
    for rooms, low, high in ((1, 0.95, 1.0), (10, 0.0, 0.15), (20, 0.0, 0.001)):
        core = Portal(1000, min_rooms=rooms, max_rooms=rooms)
        info = play(core, lambda core: rng.choice([-1, 1], core.num_envs), 1)
        failed = ~info["is_success"]
        assert low <= info["is_success"].mean() <= high
        assert (info["agent_steps"][failed] == info["step_limit"][failed]).all()


def start_core(num_envs: int, seed: int = 0, **kwargs) -> Portal:
    """A core in which each environment has begun its first episode."""
    core = Portal(num_envs, **kwargs)
    core.reset(np.arange(num_envs), np.arange(num_envs) + seed)
    return core


def observe_at(core: Portal, room: int, x: int) -> np.ndarray:
    """Moves all agents to tile x of a room. Returns their observations [B, V, V, 3]."""
    core.room[:] = room
    core.x[:] = x
    return core.observe()


def test_landmarks_are_unique_in_the_episode_and_visible_at_the_decision():
    core = start_core(200, min_rooms=50, max_rooms=50)
    images = np.array([observe_at(core, room, core.room_length - 1) for room in range(50)])  # [rooms, B, 3, 3, 3]
    landmarks = images[:, :, 2]
    np.testing.assert_array_equal(landmarks, THINGS[core.landmark.transpose(2, 0, 1)])
    num_equal = (landmarks[:, None] == landmarks[None]).all(-1).sum(-1)  # [rooms, rooms, B]: equal places of two rooms
    assert (num_equal[np.arange(50), np.arange(50)] == 3).all()
    assert num_equal[~np.eye(50, dtype=bool)].max() == 1
    assert num_equal[:18, :18][~np.eye(18, dtype=bool)].max() == 0
    counts = np.bincount(core.landmark[:, :, 7].ravel(), minlength=18)
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize("objects, max_rooms, used", [(3, 10, 3), (3, 27, 3), (3, 28, 4), (2, 50, 4), (17, 10, 17)])
def test_landmarks_of_few_objects_differ_and_share_two(objects, max_rooms, used):
    """As many objects as there must be for so many different triples. Every triple is as likely."""
    core = start_core(500, min_rooms=max_rooms, max_rooms=max_rooms, landmark_objects=objects)
    assert core.landmark_objects == used
    for place in range(3):
        assert max(len(set(row)) for row in core.landmark[:, place].tolist()) == min(used, max_rooms)
    shared = (core.landmark[:, :, :, None] == core.landmark[:, :, None]).sum(1)  # [B, rooms, rooms]
    pairs = shared[:, *np.triu_indices(max_rooms, 1)]
    assert pairs.max() == 2
    # Of the other triples, 3 (n - 1) share two objects with a given one.
    expected = 3 * (used - 1) / (used**3 - 1)
    assert abs((pairs == 2).mean() - expected) < 0.2 * expected + 0.002
    smaller_core = start_core(500, max_rooms=max_rooms // 2, landmark_objects=used)
    np.testing.assert_array_equal(smaller_core.landmark, core.landmark[:, :, : max_rooms // 2])
    np.testing.assert_array_equal(smaller_core.right, core.right[:, : max_rooms // 2])


def test_the_first_tile_of_a_room_identifies_the_first_room_only():
    core = start_core(50, min_rooms=10)
    for room in range(10):
        image = observe_at(core, room, x=0)
        assert (image == HOME).all(-1).any((1, 2)).tolist() == [room == 0] * 50
        assert len(np.unique(image.reshape(50, -1), axis=0)) == 1


def test_no_observation_shows_which_door_leads_on():
    """When the right doors are exchanged, no observation of any tile changes. The draws are fair and independent."""
    core = start_core(20_000, min_rooms=4, max_rooms=4)
    for room in range(4):
        for x in range(3):
            image = observe_at(core, room, x)
            core.right *= -1
            np.testing.assert_array_equal(core.observe(), image)
    north_leads_on = core.right < 0  # [B, rooms]
    colour = core.north == 0
    facts = np.concatenate([north_leads_on, colour, core.landmark[:, 1, :1] < 9, core.landmark[:, 2, :1] < 9], 1)
    correlation = np.corrcoef(facts.T.astype(float)) - np.eye(10)
    assert abs(correlation).max() < 4.5 / np.sqrt(20_000)
    assert abs(facts.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(20_000)


def test_rooms_are_drawn_uniformly_and_an_episode_does_not_depend_on_max_rooms():
    core = start_core(20_000, min_rooms=3, max_rooms=7)
    counts = np.bincount(core.rooms, minlength=8)[3:]
    assert counts.sum() == 20_000 and abs(counts - 4000).max() < 4 * np.sqrt(4000)
    larger_core = start_core(20_000, max_rooms=50)
    np.testing.assert_array_equal(larger_core.right[:, :7], core.right)
    np.testing.assert_array_equal(larger_core.north[:, :7], core.north)
    np.testing.assert_array_equal(larger_core.landmark[:, :, :7], core.landmark)


def test_log_uniform_rooms_favour_short_chains():
    """P(rooms) ~ log((rooms + 1) / rooms), within four standard deviations."""
    core = start_core(20_000, min_rooms=3, max_rooms=7, rooms_distribution="log_uniform")
    rooms = np.arange(3, 8)
    expected = np.log((rooms + 1) / rooms) / np.log(8 / 3)
    frequency = (core.rooms == rooms[:, None]).mean(1)
    assert (abs(frequency - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    assert frequency.sum() == pytest.approx(1)


def walk(core: Portal, takes_wrong_door: bool = False) -> list[int]:
    """The moves through the room in which environment 0 begins."""
    right_is_north = core.right[0, core.room[0]] < 0
    return [EAST] * (core.room_length - 1) + [NORTH if right_is_north != takes_wrong_door else SOUTH]


def test_progress_is_paid_once_per_room_and_is_not_in_the_previous_reward():
    kwargs = {"min_rooms": 3, "max_rooms": 3, "progress_reward": 0.25}
    env = envs.make_env("Portal-v0", **kwargs)
    vector = envs.make_vec_env("Portal-v0", 1, **kwargs)
    env.reset(seed=5)
    vector.reset(seed=5)
    core = env.unwrapped.core
    steps = []  # (reward, shaping, previous reward)
    for takes_wrong_door in (False, True, False, False, False):  # into room 1, back, into rooms 1 and 2, and out
        for action in walk(core, takes_wrong_door):
            observation, reward, terminated, _, info = env.step(action)
            batch, rewards, *_, infos = vector.step(np.array([action]))
            steps.append((reward, info["shaping"], float(observation["previous_reward"])))
            if terminated:
                batch = infos["final_obs"]
            assert (rewards[0], batch["previous_reward"][0]) == (reward, observation["previous_reward"])
    door_steps = [(0.25, 0.25, 0), (0, 0, 0), (0, 0, 0), (0.25, 0.25, 0), (1, 0, 1)]
    assert steps == [step for door_step in door_steps for step in ((0, 0, 0), (0, 0, 0), door_step)]
    assert terminated and infos["final_info"]["wrong_doors"][0] == 1


def test_shaping_is_in_the_infos_as_in_gymnasiums_vectors():
    """Against SyncVectorEnv over the single form, also if an episode is truncated at the step that pays progress."""
    kwargs = {"max_rooms": 3, "progress_reward": 0.25, "max_steps": 9}
    vector = PortalVectorEnv(4, **kwargs)
    singles = SyncVectorEnv([lambda: gym.make("Portal-v0", **kwargs)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    wrapped = VectorPreviousActionReward(
        SyncVectorEnv([lambda: gym.make("Portal-v0", **kwargs)] * 4, autoreset_mode=AutoresetMode.SAME_STEP)
    )
    for env in (vector, singles, wrapped):
        env.reset(seed=0)
    rng = np.random.default_rng(0)
    num_final_payments = 0
    for _ in range(600):
        actions = rng.choice([NORTH, EAST, EAST, SOUTH], 4)
        *_, infos = vector.step(actions)
        *_, expected = singles.step(actions)
        observation, reward, *_, wrapped_infos = wrapped.step(actions)
        assert infos.keys() == expected.keys()
        for left, right in ((infos, expected), (infos.get("final_info", {}), expected.get("final_info", {}))):
            if "shaping" in right:
                np.testing.assert_array_equal(left["_shaping"], right["_shaping"])
                np.testing.assert_array_equal(left["shaping"] * left["_shaping"], right["shaping"])
        if "final_obs" in infos:
            done = infos["_final_obs"]
            shaping = infos["final_info"]["shaping"][done]
            num_final_payments += np.count_nonzero(shaping)
            previous_reward = wrapped_infos["final_obs"]["previous_reward"][done]
            np.testing.assert_allclose(previous_reward, reward[done] - shaping)
        assert set(observation["previous_reward"]) <= {0, 1}
    assert num_final_payments > 0


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
        ({"landmark_objects": 19}, "landmark_objects: expected a whole number from 2 to 18, got 19"),
        ({"view_size": 4}, "view_size: expected an odd number, so that the agent is in the middle, got 4"),
        ({"max_steps": 0}, "max_steps: expected a whole number from 1 to 1000000000, got 0"),
    ],
)
def test_invalid_settings_give_an_error_of_one_line(kwargs, message):
    for make in (lambda: envs.make_env("Portal-v0", **kwargs), lambda: envs.make_vec_env("Portal-v0", 2, **kwargs)):
        with pytest.raises(envs.EnvError) as caught:
            make()
        assert str(caught.value) == message


def test_the_picture_shows_the_chain_with_only_the_agents_room_lit():
    env = PortalEnv(render_mode="rgb_array", min_rooms=2, max_rooms=3)
    env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (3 * 32, 3 * 5 * 32, 3)
    tiles = picture.reshape(3, 32, 15, 32, 3).transpose(2, 0, 1, 3, 4)  # [column, line, ...]
    np.testing.assert_array_equal(tiles[0, 1], Grid.render_tile(Goal(), highlight=True).astype(np.uint8))
    env.core.room[0] = 1
    new_tiles = env.render().reshape(3, 32, 15, 32, 3).transpose(2, 0, 1, 3, 4)
    changed = [column for column in range(15) if (tiles[column] != new_tiles[column]).any()]
    assert changed == [0, 1, 2, 5, 6, 7]


def test_the_doors_of_a_known_room_are_a_decision():
    core = Portal(1, min_rooms=2, max_rooms=2, room_length=2)
    core.reset(np.arange(1), np.zeros(1, np.int64))
    wrong_door, right_door = (SOUTH, NORTH) if core.right[0, 0] < 0 else (NORTH, SOUTH)
    decisions = []
    for action in (EAST, wrong_door, EAST, right_door, EAST, EAST):
        decisions.append(bool(core.decisions()[0]))
        core.step(np.array([action]))
    assert decisions == [False, False, False, True, False, False]  # the second room's doors are new
    assert core.facts() is None and core.swap_observation(core.observe()) is None


def test_progress_is_not_rewarded_by_default():
    assert Portal(1).progress_reward == 0.0
