"""Portal's batched rules against a slow reference, one step and environment at a time, on MiniGrid's grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, Goal, Wall, WorldObj
from walks import reset_with_reference, sample_walk

from expire_span_rl.envs.portal import THINGS, Portal, PortalVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

B = 3


class PlainPortal:
    """The task's rules with MiniGrid's own objects on MiniGrid's own grids, one per room."""

    def __init__(self, core: Portal, row: int) -> None:
        """The episode that environment `row` of a core has just begun."""
        self.rooms = int(core.rooms[row])
        self.length = core.room_length
        self.view_size = core.view_size
        self.progress_reward = core.progress_reward
        self.oracle = self.length * (self.rooms + self.rooms * (self.rooms + 1) / 4)
        self.limit = core.max_steps or int(np.ceil(4 * self.oracle))
        self.margin = core.view_size + 2
        self.grids = [self.make_grid(core, row, k) for k in range(self.rooms)]
        self.right = [{-1: "north", 1: "south"}[int(core.right[row, k])] for k in range(self.rooms)]
        self.room = self.x = self.y = self.steps = self.wrong_doors = self.repeated_mistakes = 0
        self.visited_rooms = {0}
        self.known_rooms: set[int] = set()

    def make_grid(self, core: Portal, row: int, k: int) -> Grid:
        """The grid of room k."""
        grid = Grid(self.length + 2 * self.margin, 2 * self.margin + 1)
        for i in range(grid.width):
            for j in range(grid.height):
                grid.set(i, j, Wall())
        colours = ["red", "blue"] if core.north[row, k] == 0 else ["blue", "red"]
        tiles = {(x, 0): None for x in range(self.length)}
        tiles |= {(self.length - 1, -1): Door(colours[0]), (self.length - 1, 1): Door(colours[1])}
        tiles |= {(self.length, i - 1): WorldObj.decode(*THINGS[core.landmark[row, i, k]]) for i in range(3)}
        if k == 0:
            tiles[-1, 0] = Goal()
        for (x, y), thing in tiles.items():
            grid.set(x + self.margin, y + self.margin, thing)
        return grid

    def observation(self) -> np.ndarray:
        reach = self.view_size // 2
        corner = self.x + self.margin - reach, self.y + self.margin - reach
        view = self.grids[self.room].slice(*corner, self.view_size, self.view_size)
        view.set(reach, reach, None)  # as MiniGrid does with the tile the agent stands on
        return view.encode()

    def step(self, action: int) -> tuple[float, float, bool, bool, dict]:
        """Reward, the part of it that only the learner sees, terminated, truncated, info."""
        self.steps += 1
        dx, dy = {NORTH: (0, -1), EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0)}[action]
        target = self.grids[self.room].get(self.x + dx + self.margin, self.y + dy + self.margin)
        success = False
        shaping = 0.0
        if target is None:
            self.x += dx
            self.y += dy
        elif target.type == "door":
            is_right = self.right[self.room] == {-1: "north", 1: "south"}[dy]
            self.wrong_doors += not is_right
            self.repeated_mistakes += not is_right and self.room in self.known_rooms
            self.known_rooms.add(self.room)
            success = is_right and self.room == self.rooms - 1
            if success:
                self.y = dy
            else:
                self.room = self.room + 1 if is_right else 0
                self.x = 0
                shaping = 0.0 if self.room in self.visited_rooms else self.progress_reward
                self.visited_rooms.add(self.room)
        truncated = not success and self.steps >= self.limit
        info = {
            "is_success": success,
            "rooms": self.rooms,
            "furthest_room": len(self.visited_rooms),
            "wrong_doors": self.wrong_doors,
            "repeated_mistakes": self.repeated_mistakes,
            "oracle_steps": self.oracle,
            "step_limit": self.limit,
            "agent_steps": self.steps if success else self.limit,
        }
        return success + shaping, shaping, success, truncated, info


CASES: Counter[str] = Counter()


def test_batched_rules_agree_with_the_reference():
    """Over whole episodes, one after the other."""
    CASES.clear()
    check_rules()
    assert all(CASES[case] >= 20 for case in ("left several rooms", "default limit", "max_steps"))
    assert CASES["repeated mistakes in a later episode"] >= 20


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**64),
    rooms=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    room_length=st.sampled_from([2, 3, 3, 4, 7]),
    view_size=st.sampled_from([3, 3, 5, 9]),
    progress_reward=st.sampled_from([0.0, 0.1, 2]),
    max_steps=st.sampled_from([None, None, 1, 7]),
)
def check_rules(*, seed, rooms, room_length, view_size, progress_reward, max_steps):
    env = PortalVectorEnv(
        B,
        min_rooms=rooms[0],
        max_rooms=sum(rooms),
        room_length=room_length,
        view_size=view_size,
        progress_reward=progress_reward,
        max_steps=max_steps,
    )
    references = reset_with_reference(env, seed, PlainPortal)
    rng = np.random.default_rng(seed)
    episodes = np.zeros(B, int)
    for _ in range(200):
        right = env.core.right[np.arange(B), env.core.room]
        actions = sample_walk(rng, env.core.x == room_length - 1, right)
        observation, reward, terminated, truncated, infos = env.step(actions)
        done = terminated | truncated
        for row in range(B):
            expected_reward, expected_shaping, *expected_flags, info = references[row].step(actions[row])
            if progress_reward:
                shaping = infos["final_info"]["shaping"] if done[row] else infos["shaping"]
                assert shaping[row] == expected_shaping
            assert reward[row] == expected_reward
            assert [terminated[row], truncated[row]] == expected_flags
            if done[row]:
                np.testing.assert_array_equal(infos["final_obs"][row], references[row].observation())
                assert {key: infos["final_info"][key][row] for key in info} == info
                CASES["left several rooms"] += bool(terminated[row]) and info["rooms"] > 1
                CASES["max_steps" if max_steps else "default limit"] += bool(truncated[row])
                CASES["repeated mistakes in a later episode"] += info["repeated_mistakes"] > 0 and episodes[row] > 0
                episodes[row] += 1
                references[row] = PlainPortal(env.core, row)
            np.testing.assert_array_equal(observation[row], references[row].observation())
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros(B, bool)), done)
        assert progress_reward or "shaping" not in infos
