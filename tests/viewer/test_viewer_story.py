"""The headline of the page, for every case, and the moment at which it opens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from viewer_cases import SHIPPED, make_policy, play_steps

from expire_span_rl.envs import make_env
from expire_span_rl.policies import load_policy
from expire_span_rl.viewer.counterfactual import forgetting_of
from expire_span_rl.viewer.naming import describe_cells, describe_observations
from expire_span_rl.viewer.play import Forgetting, play
from expire_span_rl.viewer.story import NO_DECISION, first_forgetting, story

NAMES = ["north", "east", "south", "west"]


def effect(action: int, shift: float) -> dict[str, Any]:
    return {"action": action, "shift": shift}


def row(step: int, written: int, removed: tuple[int, float], swapped: tuple[int, float] | None = None, layer: int = 0):
    """A row of the audit: the agent went south."""
    return {
        "step": step, "written": written, "layer": layer, "attention": 0.5, "fact": 0, "base": effect(2, 0),
        "total_removed": effect(*removed), "total_swapped": None if swapped is None else effect(*swapped),
    }  # fmt: skip


def record(rows=(), *, decisions=(9,), ends=(10, 3, 4, *[10] * 7), span=None, **other: Any) -> dict[str, Any]:
    """Ten steps; the observations of steps 1 and 2 are forgotten at steps 3 and 4."""
    span = [5.0] * 10 if span is None else span
    layer = {"end": list(ends), "span": span, "live": [min(t + 1, 8) for t in range(10)]}
    audit = {
        "memories": list(rows), "decisions": list(decisions), "influence": [0.0] * 10, "decisions_named": True,
        "measured_per_decision": 3, "changes_action": [False] * 10,
    }  # fmt: skip
    return {
        "layers": [layer], "steps": 10, "action_names": NAMES, "state_bytes": 0, "deterministic": True, "audit": audit,
        "shows": {"texts": ["blue ball", ""], "which": [0] + [1] * 9}, "facts": [0] + [-1] * 9, **other,
    }  # fmt: skip


def headline(data: dict[str, Any]) -> str:
    return story(data)["headline"]


def test_one_fact_that_mattered():
    data = story(record([row(9, 0, (0, 0.9)), row(9, 8, (2, 0.01))]))
    assert data["headline"] == "Kept the blue ball of step 0 for 9 steps; without it the agent would have gone north."
    assert data["detail"] == "By step 9 it had forgotten 2 of 10 observations. It never held more than 8 at a time."
    assert (data["step"], data["written"], data["matters"]) == (9, 0, [0])


def test_layers_that_forget_differently():
    data = record([row(9, 0, (0, 0.9))], ends=(10,) * 10)
    assert story(data)["detail"] == "By step 9 it had forgotten nothing: all 10 observations were still in memory."
    data["layers"].append({**data["layers"][0], "end": [10, 3, 4, *[10] * 7]})
    assert first_forgetting(data) == 3
    assert story(data)["detail"] == (
        "By step 9 it had forgotten, of 10 observations, 0 in layer 1 and 2 in layer 2. "
        "It never held more than 8 at a time in a layer."
    )


def test_kept_for_good_drawn_actions_and_what_has_no_name():
    data = record([row(9, 0, (0, 0.9))], span=[None, *[5.0] * 9])
    assert headline(data) == (
        "Kept the blue ball of step 0 for good. 9 steps later, without it, the agent would have gone north."
    )
    data = record([row(9, 8, (1, 0.9))], deterministic=False, action_names=["0: 1", "1: 0", "2: 2", "3: 1"])
    assert headline(data) == (
        "Kept the observation of step 8 for 1 step; without it the agent would have most likely chosen “1: 0”."
    )


def test_several_facts_that_mattered():
    rows = [row(5, 4, (1, 0.8)), row(9, 0, (0, 0.9)), row(9, 8, (1, 0.91)), row(9, 7, (2, 0.2))]
    data = story(record(rows, decisions=(5, 7, 9)))
    assert data["headline"] == (
        "Needed 3 earlier observations, at 2 of 3 decisions. It kept the blue ball of step 0 for 9 steps; "
        "without it the agent would have gone north at step 9."
    )
    assert (data["step"], data["written"], data["matters"]) == (9, 0, [0, 4, 8])
    one = headline(record(rows[1:]))
    assert one.startswith("Needed 2 earlier observations, at its only decision.")


def test_the_same_observation_in_two_layers_is_one_fact():
    assert headline(record([row(9, 0, (0, 0.9)), row(9, 0, (0, 0.9), layer=1)])).startswith("Kept the blue ball")


def test_nothing_that_mattered():
    rows = [row(9, 8, (2, 0.01)), row(9, 7, (2, 0.004))]
    stays = "No single memory decided: without any one of the 2 measured, every action stays"
    assert headline(record(rows)) == f"{stays} (largest shift 0.01)."
    assert headline(record(rows[:1])).startswith("No memory decided: without the only one measured, every action stays")
    rows[1] = row(9, 7, (2, 0.004), (0, 0.98))  # a fact that was copied, or seen twice
    data = story(record(rows))
    assert data["headline"] == (
        f"{stays}. But had it seen the opposite of the blue ball of step 0, which the memory of step 7 carries, "
        "the agent would have gone north at step 9."
    )
    assert (data["step"], data["written"], data["matters"]) == (9, 7, [])
    seen_twice = record(rows, facts=[0, -1, -1, -1, 0, -1, -1, -1, 0, -1])  # and once more, too late for the memory
    for step in (4, 8):
        seen_twice["shows"]["which"][step] = 0
    assert "the opposite of the blue ball of step 4, which the memory of step 7 carries" in headline(seen_twice)
    shown_again = record(rows, facts=[0, *[-1] * 6, 0, -1, -1])
    shown_again["shows"]["which"][7] = 0
    assert "the opposite of the blue ball of step 7, the agent" in story(shown_again)["headline"]


def test_nothing_that_was_measured():
    data = record()
    data["audit"]["measured_per_decision"] = 0
    assert headline(data) == "Whether a memory mattered was not measured in this episode (--audit 0)."
    assert headline(record()).startswith("No decision of this episode had an earlier observation to attend to")
    assert headline(record(decisions=())).startswith("This episode came to no decision that depends on the past")
    data = record(decisions=())
    data["audit"] |= {"decisions_named": False, "influence": [0.0] * 9 + [0.07]}
    assert headline(data) == (
        "Memory decided nothing in this episode: without any, the action probabilities shift by 0.07 at most."
    )
    assert story(data)["step"] == 9


def test_memories_without_slots():
    data = record(layers=[], decisions=(2,), state_bytes=256)
    data["audit"] |= {"influence": [0.0, 0.0, 0.4, *[0.1] * 7], "changes_action": [True] * 10}
    assert story(data)["step"] == 2 and story(data)["detail"] == "" and story(data)["written"] is None
    assert headline(data) == (
        "Remembers in one state of 256 bytes, in which observations cannot be told apart. Emptying this state would "
        "noticeably change the agent's action at its only decision, step 2, where it shifts the action probabilities "
        "by 0.40."
    )
    data["audit"]["influence"] = [0.0] * 10
    assert headline(data).endswith("Emptying this state would noticeably change no action at a decision.")
    none = story(record(layers=[], decisions=()))
    assert none["headline"] == "Has no memory: every action follows from what the agent sees at that step."
    assert none["step"] == 9


def test_a_memory_without_slots_is_judged_at_the_decisions_that_the_environment_names():
    data = record(layers=[], decisions=(4, 6), state_bytes=256)
    data["audit"] |= {"influence": [0.0, 0.0, 0.9, 0.0, 0.4, 0.0, 0.3, *[0.1] * 3], "changes_action": [True] * 10}
    data["story"] = story(data)
    assert data["story"]["step"] == 4 and forgetting_of(data) == Forgetting(4, None)
    data["audit"]["changes_action"][4] = False
    data["story"] = story(data)
    assert data["story"]["step"] == 6 and forgetting_of(data) == Forgetting(6, None)
    data["audit"]["changes_action"][6] = False
    data["story"] = story(data)
    assert headline(data).endswith(
        "Of the decisions, it matters most at step 4: emptied, it shifts the action probabilities by 0.40, but the "
        "action stays the same."
    )
    assert forgetting_of(data) is None
    data["audit"] |= {"changes_action": [True] * 10, "decisions": []}
    data["story"] = story(data)
    assert headline(data).endswith(f"cannot be told apart. {NO_DECISION}")
    assert forgetting_of(data) is None
    data["audit"]["decisions_named"] = False
    assert story(data)["step"] == 2  # where it names none at all, any step may be one
    assert "at 6 of 10 steps, most at step 2, where it shifts the action probabilities by 0.90." in headline(data)


def test_what_is_said_of_decisions_is_not_said_of_the_whole_episode():
    data = record(layers=[], decisions=(3, 6), state_bytes=64)
    data["audit"] |= {"influence": [0.0, 0.9, *[0.0] * 7, 0.7], "changes_action": [False, True, *[False] * 7, True]}
    assert headline(data).endswith("Emptying this state would noticeably change no action at a decision.")
    data["audit"]["influence"] = [0.0, 0.9, 0.0, 0.35, 0.0, 0.0, 0.2, 0.0, 0.0, 0.7]
    data["audit"]["changes_action"] = [False, True, *[False] * 4, True, False, False, True]
    assert headline(data).endswith(
        "Emptying this state would noticeably change the agent's action at 1 of 2 decisions, step 6, where it shifts "
        "the action probabilities by 0.20."
    )
    data["deterministic"] = False
    assert "change the agent's most likely action at 1 of 2 decisions" in headline(data)
    data["audit"] |= {"decisions_named": False, "influence": [0.01] * 10}
    assert headline(data).endswith("Emptying this state would noticeably change no action.")


@pytest.mark.parametrize(("ends", "step"), [((10, 3, 4, *[10] * 7), 8), ((10,) * 10, 2), ((10, 9, *[10] * 8), 9)])
def test_it_opens_at_the_largest_influence_after_something_was_forgotten(ends, step):
    rows = [row(2, 1, (0, 0.99)), row(8, 0, (0, 0.8)), row(9, 0, (0, 0.5))]
    assert story(record(rows, decisions=(2, 8, 9), ends=ends))["step"] == step
    influence = [0.0, 0.0, 0.9, 0.0, 0.3, 0.0, 0.0, 0.0, 0.6, 0.2]
    unmeasured = record(decisions=(), ends=ends)
    unmeasured["audit"]["influence"] = influence
    assert story(unmeasured)["step"] == step
    assert first_forgetting(record(ends=(10,) * 10)) is None


def test_cells_whole_numbers_and_texts_have_names_and_floats_have_none():
    env = make_env("Corridor-v0", min_length=5, max_length=5)
    observation, _ = env.reset(seed=0)
    assert describe_cells(observation["image"]) == f"{'blue' if env.unwrapped.core.ball[0] else 'red'} ball"
    policy = make_policy(env_id="Portal-v0")
    episode = play_steps(policy, 30, "Portal-v0")
    data = describe_observations(policy, episode)
    assert len(data["which"]) == 30 and data["texts"][data["which"][0]] == "green goal"
    assert any("door" in text for text in data["texts"])
    grid = make_policy(env_id="MiniGrid-MemoryS7-v0")  # its direction and its mission, always the same, name nothing
    texts = describe_observations(grid, play_steps(grid, 10, "MiniGrid-MemoryS7-v0"))["texts"]
    assert texts and not any("direction" in text or "“" in text for text in texts)
    pole = make_policy(env_id="CartPole-v1")
    assert describe_observations(pole, play_steps(pole, 5, "CartPole-v1"))["texts"] == [""]


def test_the_shipped_policys_story():
    policy, _ = load_policy(SHIPPED)
    episode = play(policy, make_env("Corridor-v0", min_length=100), 3, 1000, True)
    data = describe_observations(policy, episode)
    names = [data["texts"][i] for i in data["which"]]
    assert names[0] == "blue ball" and set(names[1:-2]) == {""} and "door" in names[-1]
    assert np.flatnonzero(np.array(names) != "").tolist() == [0, 138, 139]
