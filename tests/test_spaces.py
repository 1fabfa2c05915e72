"""Any observation as entries of arrays: names, values, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from minigrid.core import mission

from expire_span_rl.spaces import Flattener, SpaceError, find_entry, word_numbers

NESTED = spaces.Dict({
    "cards": spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Dict({"suit": spaces.MultiBinary(2)}))),
    "clock": spaces.Box(0, 1, (2, 2), np.float32),
    "text": spaces.Text(20),
    "mission": mission.MissionSpace(mission_func=lambda: "go"),
})  # fmt: skip
OBSERVATION = {
    "cards": (-1, {"suit": np.array([0, 1], np.int8)}),
    "clock": np.full((2, 2), 0.5),  # float64 where float32 is promised: many environments do that
    "text": "Go home!",
    "mission": "go",
}


def test_entries_are_named_by_their_path():
    flat = Flattener(NESTED)
    assert list(flat.space) == ["cards/0", "cards/1/suit", "clock", "mission", "text"]
    entries = flat(OBSERVATION)
    assert entries.keys() == set(flat.space)
    assert entries["cards/0"] == -1 and entries["cards/1/suit"].tolist() == [0, 1]
    assert (
        entries["clock"].dtype == np.float32 and entries["text"][:4].tolist() == word_numbers("go home !", 4).tolist()
    )
    assert all(space.contains(entries[name]) for name, space in flat.space.items())
    found = {name: find_entry(OBSERVATION, name) for name in flat.space}
    assert found["cards/0"] == -1 and found["cards/1/suit"] is OBSERVATION["cards"][1]["suit"]
    assert found["clock"] is OBSERVATION["clock"] and (found["text"], found["mission"]) == ("Go home!", "go")
    for name in ("cards/2", "cards/1/rank", "hour"):
        with pytest.raises(KeyError):
            find_entry(OBSERVATION, name)


@pytest.mark.parametrize(
    "space, name",
    [
        (spaces.Box(0, 255, (5, 5, 3), np.uint8), "image"),
        (spaces.Box(0, 1, (5, 5, 3), np.float32), "observation"),
        (spaces.Discrete(3), "observation"),
        (spaces.Text(3), "observation"),
        (spaces.Tuple((spaces.Discrete(3),)), "0"),
    ],
)
def test_an_observation_without_parts_has_one_name(space, name):
    assert list(Flattener(space).space) == [name]


def test_a_batch_is_what_its_rows_are():
    flat = Flattener(NESTED)
    other = {**OBSERVATION, "cards": (1, {"suit": np.array([1, 1], np.int8)}), "text": "stay"}
    batch = {
        "cards": (np.array([-1, 1]), {"suit": np.array([[0, 1], [1, 1]], np.int8)}),
        "clock": np.full((2, 2, 2), 0.5, np.float32),
        "text": ("Go home!", "stay"),
        "mission": ("go", "go"),
    }
    both = flat.batched(batch, 2)
    for row, one in enumerate((OBSERVATION, other)):
        for name, entry in flat(one).items():
            np.testing.assert_array_equal(both[name][row], entry)


def test_what_cannot_be_read_is_left_out_with_its_reason():
    flat = Flattener(spaces.Dict({
        "a": spaces.Discrete(2), "b": spaces.Sequence(spaces.Discrete(2)), "c": spaces.Tuple((spaces.Graph(
            spaces.Box(0, 1, (1,)), None),)), "d": spaces.Box(0, 1, (0,)),
    }))  # fmt: skip
    assert flat.left_out == {"b": "a Sequence", "c/0": "a Graph", "d": "an empty Box"}
    assert list(flat.space) == ["a"]


@pytest.mark.parametrize(
    "space, message",
    [
        (spaces.Sequence(spaces.Discrete(2)), r"got 'observation' \(a Sequence\)"),
        (spaces.Dict({}), "got no parts"),
        (
            spaces.Dict({"previous_action": spaces.Discrete(2)}),
            "expected no part called 'previous_action', since the policy adds one of that name",
        ),
        (spaces.Dict({"a/b": spaces.Discrete(2), "a": spaces.Dict({"b": spaces.Discrete(2)})}), "'a/b', got two"),
    ],
)
def test_a_space_that_cannot_be_read_is_refused(space, message):
    with pytest.raises(SpaceError, match=f"^observation space: .*{message}$"):
        Flattener(space)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"cards": (5, {"suit": np.zeros(2, np.int8)})}, r"'cards/0': expected numbers in its space .*, got 5"),
        (
            {"cards": (0, {"suit": np.array([0, 2], np.int8)})},
            r"'cards/1/suit': expected numbers in its space .*, got 2",
        ),
        ({"cards": (0.5, {"suit": np.zeros(2, np.int8)})}, r"'cards/0': expected int64\[\], got float64\[\]"),
        ({"cards": (0, {})}, r"'cards/1/suit': expected such a part, the observation has none"),
        ({"cards": (0,)}, r"'cards/1/suit': expected such a part, the observation has none"),
        ({"clock": np.zeros((2, 3))}, r"'clock': expected float32\[2, 2\], got float64\[2, 3\]"),
        ({"clock": [[0, 1], [2]]}, r"'clock': expected float32\[2, 2\], got \[\[0, 1\], \[2\]\]"),
        ({"clock": np.full((2, 2), np.nan)}, "'clock': expected finite numbers, got nan"),
        ({"clock": "noon"}, r"'clock': expected float32\[2, 2\], got <U4\[\]"),
        ({"text": 3}, "'text': expected text, got 3"),
        ({"text": None}, "'text': expected text, got None"),
    ],
)
def test_an_observation_outside_its_space_is_refused_with_its_part(changed, message):
    with pytest.raises(SpaceError, match=f"^observation {message}"):
        Flattener(NESTED)({**OBSERVATION, **changed})


def test_floats_may_leave_their_bounds_and_are_remembered():
    flat = Flattener(NESTED)
    flat(OBSERVATION)
    assert flat.outside == set()
    assert flat({**OBSERVATION, "clock": np.full((2, 2), 3.0)})["clock"].max() == 3
    assert flat.outside == {"clock"}


def test_entries_are_copies():
    """Some environments write to the same array at every step."""
    space = spaces.Box(0, 1, (2,), np.float32)
    array = np.zeros(2, np.float32)
    entry = Flattener(space)(array)["observation"]
    array[:] = 1
    assert entry.tolist() == [0, 0]
