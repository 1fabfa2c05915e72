"""Portal's batched rules against a plain transcription, one step and environment at a time, on MiniGrid's grid."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.world_object import Door, Goal, Wall, WorldObj
from walks import begun, wandering

from expire_span_rl.envs.portal import THINGS, Portal, PortalVectorEnv
from expire_span_rl.envs.tiles import EAST, NORTH, SOUTH, WEST

B = 3


class PlainPortal:
    """The rules as the issue tells them, with MiniGrid's own objects on MiniGrid's own grids, one per room."""

    def __init__(self, core: Portal, row: int) -> None:
        """The episode that environment `row` of a core has just begun."""
        self.rooms, self.length, self.view_size = int(core.rooms[row]), core.room_length, core.view_size
        self.progress_reward = core.progress_reward
        self.oracle = self.length * (self.rooms + self.rooms * (self.rooms + 1) / 4)
        self.limit = core.max_steps or int(np.ceil(4 * self.oracle))
        self.margin = core.view_size + 2
        self.grids, self.right = [], []
        for k in range(self.rooms):
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
            self.grids.append(grid)
            self.right.append({-1: "north", 1: "south"}[int(core.right[row, k])])
        self.room = self.x = self.y = self.steps = self.wrong = self.repeated = 0
        self.visited, self.taken = {0}, set()

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
        left, shaping = False, 0.0
        if target is None:
            self.x, self.y = self.x + dx, self.y + dy
        elif target.type == "door":
            right = self.right[self.room] == {-1: "north", 1: "south"}[dy]
            self.wrong += not right
            self.repeated += not right and self.room in self.taken
            self.taken.add(self.room)
            left = right and self.room == self.rooms - 1
            if left:
                self.y = dy
            else:
                self.room, self.x = self.room + 1 if right else 0, 0
                shaping = 0.0 if self.room in self.visited else self.progress_reward
                self.visited.add(self.room)
        truncated = not left and self.steps >= self.limit
        info = {
            "is_success": left, "rooms": self.rooms, "furthest_room": len(self.visited), "wrong_doors": self.wrong,
            "repeated_mistakes": self.repeated, "oracle_steps": self.oracle, "step_limit": self.limit,
            "agent_steps": self.steps if left else self.limit,
        }  # fmt: skip
        return left + shaping, shaping, left, truncated, info


ENDS: Counter[str] = Counter()


def test_batched_rules_are_the_plain_rules():
    """Over whole episodes, one after the other."""
    ENDS.clear()
    check_rules()
    assert all(ENDS[end] >= 20 for end in ("left several rooms", "default limit", "own limit"))
    assert ENDS["repeated mistakes in a later episode"] >= 20


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**64),
    rooms=st.tuples(st.integers(1, 4), st.integers(0, 3)),
    room_length=st.sampled_from([2, 3, 3, 4, 7]),
    view_size=st.sampled_from([3, 3, 5, 9]),
    progress_reward=st.sampled_from([0.0, 0.1, 2]),
    max_steps=st.sampled_from([None, None, 1, 7]),
)
def check_rules(seed, rooms, room_length, view_size, progress_reward, max_steps):
    env = PortalVectorEnv(
        B, min_rooms=rooms[0], max_rooms=sum(rooms), room_length=room_length, view_size=view_size,
        progress_reward=progress_reward, max_steps=max_steps,
    )  # fmt: skip
    plain = begun(env, seed, PlainPortal)
    rng = np.random.default_rng(seed)
    episodes = np.zeros(B, int)
    for _ in range(200):
        right = env.core.right[np.arange(B), env.core.room]
        step = wandering(rng, env.core.x == room_length - 1, right)
        observation, reward, terminated, truncated, infos = env.step(step)
        ended = np.zeros(B, bool)
        for row in range(B):
            expected = plain[row].step(step[row])
            ended[row] = terminated[row] or truncated[row]
            if progress_reward:
                shaping = infos["final_info"]["shaping"] if ended[row] else infos["shaping"]
                assert shaping[row] == expected[1]
            assert (reward[row], terminated[row], truncated[row]) == (expected[0], *expected[2:4])
            if ended[row]:
                np.testing.assert_array_equal(infos["final_obs"][row], plain[row].observation())
                assert {key: infos["final_info"][key][row] for key in expected[4]} == expected[4]
                ENDS["left several rooms"] += bool(terminated[row]) and plain[row].rooms > 1
                ENDS["own limit" if max_steps else "default limit"] += bool(truncated[row])
                ENDS["repeated mistakes in a later episode"] += plain[row].repeated > 0 and episodes[row] > 0
                episodes[row] += 1
                plain[row] = PlainPortal(env.core, row)
            np.testing.assert_array_equal(observation[row], plain[row].observation())
        np.testing.assert_array_equal(infos.get("_final_obs", np.zeros(B, bool)), ended)
        assert progress_reward or "shaping" not in infos
