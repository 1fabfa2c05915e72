"""Portal (Sukhbaatar et al., ICML 2021, section 4.1): find the way through a chain of rooms by trying, and remember it.

    #####N*      H     home, only in the first room     N, S  a red and a blue door, sides drawn per room and episode
    H>...#*      >...  the room, `room_length` tiles    *     the landmark, three objects that no other room has
    #####S*

At the end of every room, one door leads to the next room and the other is a portal back to the first room. Which one is
drawn per room and episode, and no observation shows it. Leaving the last room pays +1 and ends the episode. The agent
must therefore try a door, remember for each room what it tried, and use that on every later visit.

An agent that remembers everything still guesses once in each room. With s steps per room and R rooms it takes
`s * (R + R * (R + 1) / 4)` steps in expectation (`oracle_steps`): room k sends it back with probability 1/2, and the
way back to the same place costs s * k steps.

Names: B environments, R rows, V view size, r = V // 2, rooms numbered from 0, x the agent's tile in its room. y is -1
or +1 once the agent has left the last room by its north or south door, and 0 before.

Observation: uint8 [V, V, 3], the window centred on the agent in MiniGrid's encoding and axes, as in `envs.corridor`.
A room ends at its walls: no other room is ever visible. With V = 3 home is visible from the first tile only, the doors
from the last two tiles and the landmark from the last tile. One table holds all windows without their landmarks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

from expire_span_rl.envs.core import DISTRIBUTIONS, MOST_STEPS, EnvCore, draw_integers
from expire_span_rl.envs.core_adapters import BatchedVectorEnv, SingleEnv
from expire_span_rl.envs.errors import EnvError, expect_choice, expect_int, expect_number
from expire_span_rl.envs.tiles import ACTION_NAMES, DOOR, EMPTY, STEP_X, STEP_Y, WALL, expect_view_size, open_door
from expire_span_rl.spaces import Cells

if TYPE_CHECKING:
    from expire_span_rl.envs.rendering import Strip

HOME = (OBJECT_TO_IDX["goal"], COLOR_TO_IDX["green"], 0)
THINGS = np.array(
    [(OBJECT_TO_IDX[o], COLOR_TO_IDX[c], 0) for o in ("key", "ball", "box") for c in sorted(COLOR_TO_IDX)], np.uint8
)
"""The objects of which landmarks consist: uint8 [18, 3]."""
PLACES = np.array([-1, 0, 1])
"""y of a landmark's three tiles, in the column behind the doors."""

LARGEST_ROOMS = 50
LARGEST_LENGTH = 100
_ROOMS = 0
"""The number of the draw (see `EnvCore.uniform`) for the number of rooms."""
_ORDER = 1
"""The first draw for the orders of the landmarks' objects."""
_DOORS = 1 + 3 * len(THINGS)
"""The first draw for the doors."""
_TRIPLES = _DOORS + LARGEST_ROOMS
"""The first draw for the order of triples, with `landmark_objects` below 18."""


def tile(x: int, y: int, room_length: int, *, is_first_room: bool, north: int, landmark: Any) -> tuple[int, int, int]:
    """The code of tile (x, y) of a room. north: the north door's colour (0 red, 1 blue); landmark: three codes."""
    if y == 0 and 0 <= x < room_length:
        return EMPTY
    if (x, y) == (-1, 0) and is_first_room:
        return HOME
    if x == room_length - 1 and abs(y) == 1:
        return DOOR[north if y < 0 else 1 - north]
    if x == room_length and abs(y) <= 1:
        kind, colour, state = (int(part) for part in landmark[y + 1])
        return kind, colour, state
    return WALL


class Portal(EnvCore):
    """B chains of rooms at once.

    Args:
        min_rooms, max_rooms: the number of rooms, drawn per episode, both included.
        rooms_distribution: "uniform" or "log_uniform", P(rooms) ~ log((rooms + 1) / rooms).
        room_length: tiles of a room, and the steps through it.
        progress_reward: paid on the first visit to each room after the first. Only the learner may see it
            (`EnvCore.shaping`), since it would tell the agent which door is right.
        landmark_objects: how many different objects an episode has at each place of a landmark, or more if `max_rooms`
            needs more. With fewer than 18, landmarks are different triples drawn at random. Two of them may then share
            two objects, so that all three must be compared.
        view_size: V, odd. With V = 3 the landmark is visible only from the tile between the doors.
        max_steps: the step limit, after which the episode is truncated; None for 4 times the oracle's expectation.

    Raises EnvError for a value out of range.
    """

    metadata: ClassVar[dict[str, Any]] = {
        **EnvCore.metadata,
        "difficulty_key": "rooms",
        "action_names": ACTION_NAMES,
        "ratios": {"memory_efficiency": ("oracle_steps", "agent_steps")},
    }
    state_fields = (
        "rooms",
        "landmark",
        "north",
        "right",
        "room",
        "x",
        "y",
        "furthest",
        "known",
        "wrong_doors",
        "repeated_mistakes",
    )

    def __init__(
        self,
        num_envs: int,
        *,
        min_rooms: int = 1,
        max_rooms: int = 10,
        rooms_distribution: str = "uniform",
        room_length: int = 3,
        progress_reward: float = 0.0,
        landmark_objects: int = len(THINGS),
        view_size: int = 3,
        max_steps: int | None = None,
    ) -> None:
        self.min_rooms = expect_int("min_rooms", min_rooms, 1, LARGEST_ROOMS)
        self.max_rooms = expect_int("max_rooms", max_rooms, 1, LARGEST_ROOMS)
        if min_rooms > max_rooms:
            raise EnvError(f"min_rooms: expected at most max_rooms ({max_rooms}), got {min_rooms}")
        self.rooms_distribution = expect_choice("rooms_distribution", rooms_distribution, DISTRIBUTIONS)
        self.room_length = expect_int("room_length", room_length, 2, LARGEST_LENGTH)
        self.progress_reward = expect_number("progress_reward", progress_reward, 0.0)
        self.landmark_objects = expect_int("landmark_objects", landmark_objects, 2, len(THINGS))
        while self.landmark_objects**3 < max_rooms:
            self.landmark_objects += 1
        self.view_size = expect_view_size(view_size)
        self.max_steps = None if max_steps is None else expect_int("max_steps", max_steps, 1, MOST_STEPS)

        self.single_observation_space = Cells(view_size, view_size)
        self.single_action_space = spaces.Discrete(4)
        # A fact learned in the first room is used until the last return. (An agent that writes it to memory again on
        # every visit needs it for one walk through all rooms at most.)
        self.memory_horizon = int(np.ceil(oracle_steps(max_rooms, room_length)))
        self.longest_episode = _step_limit(max_rooms, room_length) if max_steps is None else max_steps
        super().__init__(num_envs)
        self._allocate_state()
        if self.progress_reward:
            self.shaping = np.zeros(num_envs)
        self._windows = _window_table(room_length, view_size // 2)  # [windows, V * V * 3]
        room = np.arange(max_rooms)
        turn = room // len(THINGS)
        self._order_index = (room + turn * np.arange(3)[:, None]) % len(THINGS)  # [3, max_rooms]

    def _allocate_state(self) -> None:
        """Allocates the arrays of `state_fields`."""
        num_envs = self.num_envs
        self.rooms = np.full(num_envs, self.min_rooms)
        self.landmark = np.zeros((num_envs, 3, self.max_rooms), np.uint8)  # objects at PLACES, per room
        self.north = np.zeros((num_envs, self.max_rooms), np.uint8)  # the north door's colour, 0 red, 1 blue, per room
        self.right = np.ones((num_envs, self.max_rooms), np.int8)  # y of the door that leads on, per room
        self.room = np.zeros(num_envs, np.int64)
        self.x = np.zeros(num_envs, np.int64)
        self.y = np.zeros(num_envs, np.int64)
        self.furthest = np.zeros(num_envs, np.int64)  # the furthest room reached so far
        self.known = np.zeros(num_envs, np.int64)  # the number of rooms, from the first, in which a door was taken
        self.wrong_doors = np.zeros(num_envs, np.int64)
        self.repeated_mistakes = np.zeros(num_envs, np.int64)

    def begin(self, rows: np.ndarray) -> None:
        draws = self.uniform(rows, _DOORS + self.max_rooms)  # [draws, R]
        self.rooms[rows] = draw_integers(draws[_ROOMS], self.min_rooms, self.max_rooms, self.rooms_distribution)
        # Each place has its own order of the objects. Room k shows number k + turn * place of it. Among up to 18 rooms,
        # no object therefore appears twice in the same place. Among up to 50, no two rooms share more than one.
        order = draws[_ORDER:_DOORS].reshape(3, len(THINGS), -1).argsort(1)  # [3, 18, R]
        order_index = self._order_index[:, :, None]
        count = self.landmark_objects
        if count < len(THINGS):
            triple = self.uniform(rows, count**3, _TRIPLES).argsort(0)[: self.max_rooms]  # [max_rooms, R]
            order_index = triple // count ** np.arange(3)[:, None, None] % count  # [3, max_rooms, R]
        things = np.take_along_axis(order, order_index, 1)  # [3, max_rooms, R]
        self.landmark[rows] = things.transpose(2, 0, 1)
        doors = (draws[_DOORS:].T * 4).astype(np.int8)  # [R, max_rooms], two fair bits each
        self.north[rows] = doors // 2
        self.right[rows] = doors % 2 * 2 - 1
        for state in (self.room, self.x, self.y, self.furthest, self.known, self.wrong_doors, self.repeated_mistakes):
            state[rows] = 0

    def advance(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        last_tile = self.room_length - 1
        door = np.where(self.x == last_tile, STEP_Y[actions], 0)  # [B]: y of the door that is taken, or 0
        self.x = (self.x + STEP_X[actions]).clip(0, last_tile)
        rows = np.flatnonzero(door)
        progress = self._enter(rows, door[rows])
        terminated = self.y != 0
        reward = terminated.astype(np.float64)
        if self.progress_reward:
            self.shaping = np.zeros(self.num_envs)
            self.shaping[rows] = progress * self.progress_reward
            reward += self.shaping
        return reward, terminated, ~terminated & (self.steps >= self._step_limit())

    def _enter(self, rows: np.ndarray, door: np.ndarray) -> np.ndarray:
        """Moves the agents `rows` [R] through their doors [R]. Returns bool [R]: whether a room was reached for the
        first time."""
        room = self.room[rows]
        right = self.right[rows, room] == door
        known = room < self.known[rows]  # a door taken before, right or wrong, showed which one leads on
        self.known[rows] += ~known
        self.wrong_doors[rows] += ~right
        self.repeated_mistakes[rows] += ~right & known
        exits = right & (room == self.rooms[rows] - 1)
        goes_on = right & ~exits
        first_visit = goes_on & (room == self.furthest[rows])
        self.furthest[rows] += first_visit
        self.room[rows] = np.where(exits, room, (room + 1) * goes_on)
        self.x[rows] *= exits
        self.y[rows] = door * exits
        return first_visit

    def _step_limit(self) -> Any:
        """`max_steps`, or 4 times the oracle's expectation, which is a whole number."""
        return _step_limit(self.rooms, self.room_length) if self.max_steps is None else self.max_steps

    def observe(self) -> np.ndarray:
        r = self.view_size // 2
        north = self.north[np.arange(self.num_envs), self.room]  # [B]
        window = _window_index(self.x, self.room == 0, north, self.y)  # [B]
        image = self._windows.take(window, axis=0).reshape(-1, self.view_size, self.view_size, 3)  # [B, V, V, 3]
        # Draw the landmark where it is visible.
        rows = np.flatnonzero(self.x >= self.room_length - r)  # [R]
        things = THINGS[self.landmark[rows, :, self.room[rows]]]  # [R, 3, 3]
        south = PLACES - self.y[rows, None]  # [R, 3]: the tiles' distances to the south of the agent
        i, j = np.nonzero(abs(south) <= r)  # an agent in a door does not see all three
        image[rows[i], r + self.room_length - self.x[rows[i]], r + south[i, j]] = things[i, j]
        return image

    def final_info(self) -> dict[str, np.ndarray]:
        """`is_success` (the agent left the last room), `rooms`, `furthest_room` (counted from 1), `wrong_doors`,
        `repeated_mistakes` (wrong doors in rooms where a door had been taken before), `oracle_steps`, `step_limit`, and
        `agent_steps` (the steps taken; after a failure the limit)."""
        success = self.y != 0
        limit = np.broadcast_to(self._step_limit(), self.num_envs).astype(np.int64)
        return {
            "is_success": success,
            "rooms": self.rooms.copy(),
            "furthest_room": self.furthest + 1,
            "wrong_doors": self.wrong_doors.copy(),
            "repeated_mistakes": self.repeated_mistakes.copy(),
            "oracle_steps": oracle_steps(self.rooms, self.room_length),
            "step_limit": limit,
            "agent_steps": np.where(success, self.steps, limit),
        }

    def decisions(self) -> np.ndarray:
        """On the tile between the doors of a room in which a door has been taken before.

        The effect of a door shows only by taking it. No single observation shows the fact, so none has a
        counterpart."""
        return (self.x == self.room_length - 1) & (self.room < self.known)

    def strip(self, row: int) -> Strip:
        """The chain of rooms, the agent's view lit. Of a long chain, both ends and the agent's section."""
        from expire_span_rl.envs.rendering import Strip

        rooms, room, x, y = (int(getattr(self, name)[row]) for name in ("rooms", "room", "x", "y"))
        width = self.room_length + 2  # with the walls on either side

        def code_at(column: int, line: int) -> tuple[int, int, int]:
            k, column = divmod(column, width)
            code = tile(
                column - 1,
                line,
                self.room_length,
                is_first_room=k == 0,
                north=int(self.north[row, k]),
                landmark=THINGS[self.landmark[row, :, k]],
            )
            return open_door(code) if y and (k, column - 1, line) == (room, x, y) else code

        room_start = room * width
        return Strip(
            code_at,
            span=(0, rooms * width - 1),
            max_columns=self.max_rooms * width,
            agent=(room_start + 1 + x, y),
            reach=self.view_size // 2,
            sight=(room_start, room_start + width - 1),
        )


def oracle_steps(rooms: Any, room_length: Any) -> Any:
    """The expected steps of an agent that remembers everything, through `rooms` rooms (see the module)."""
    return room_length * (rooms + rooms * (rooms + 1) / 4)


def _step_limit(rooms: Any, room_length: int) -> Any:
    """The step limit of so many rooms: 4 times the oracle's expectation."""
    return room_length * rooms * (rooms + 5)


def _window_index(x: Any, is_first_room: Any, north: Any, y: Any) -> Any:
    """The table's row for an agent on (x, y) of the first or a later room. north: the north door's colour."""
    return ((x * 2 + is_first_room) * 2 + north) * 3 + y + 1


def _window_table(room_length: int, r: int) -> np.ndarray:
    """All windows, without landmarks: uint8 [windows, V * V * 3], in the order of `_window_index`."""
    offsets = range(-r, r + 1)
    no_landmark = [WALL] * 3
    table = np.zeros((room_length * 12, 2 * r + 1, 2 * r + 1, 3), np.uint8)
    for x, is_first, north, line in np.ndindex(room_length, 2, 2, 3):
        y = line - 1
        room = {"is_first_room": bool(is_first), "north": north, "landmark": no_landmark}
        window = [[tile(x + dx, y + dy, room_length, **room) for dy in offsets] for dx in offsets]
        table[_window_index(x, is_first, north, y)] = np.asarray(window)
    table[:, r, r] = EMPTY  # the agent's own tile, also in a door
    return table.reshape(len(table), -1)


class PortalEnv(SingleEnv, core=Portal):
    """`gym.make("Portal-v0")`."""


class PortalVectorEnv(BatchedVectorEnv, core=Portal):
    """`gym.make_vec("Portal-v0", num_envs)`."""
