"""Which episodes count, and quotients of sums over them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from expire_span_rl import PPO, envs
from expire_span_rl.agents.episodes import MOST_ROLLOUTS, EpisodeWindow, finished_episodes, quotients, ratio_parts
from expire_span_rl.agents.guard import TrainingEnded
from expire_span_rl.spaces import EPISODE_LOST

RATIOS = {
    "efficiency": ("oracle", "steps"),
    "share": {"1": ("right_1", "all_1"), "2": ("right_2", "all_2")},
    "none": None,
}


def test_quotients_are_of_sums_and_not_means_of_quotients():
    episodes = [
        {"oracle": 10, "steps": 10, "right_1": 1, "all_1": 1, "right_2": 0, "all_2": 0},
        {"oracle": 10, "steps": 90, "right_1": 1, "all_1": 4, "right_2": 0, "all_2": 0},
    ]
    assert ratio_parts(RATIOS) == ["oracle", "steps", "right_1", "all_1", "right_2", "all_2"]
    assert quotients(episodes, RATIOS) == {"efficiency": 0.2, "share": {"1": 0.4, "2": None}, "none": None}


@pytest.mark.parametrize("value", ["yes", -1, 3.0, float("nan")])
def test_a_success_that_is_none_is_refused(value):
    infos = {"_final_obs": np.array([False, True]), "final_info": {"is_success": np.array([None, value], object)}}
    with pytest.raises(
        TrainingEnded, match=r"^environment 1, is_success: expected a flag or a number from 0 to 1, got"
    ):
        finished_episodes(infos, np.zeros(2), np.ones(2, np.int64))


def test_an_episode_that_was_lost_with_its_process_counts_nowhere():
    """It has no difficulty and no success."""
    final_info = {
        "length": np.array([7, 0, 9]),
        "_length": np.array([True, False, True]),
        EPISODE_LOST: np.array([False, True, False]),
        f"_{EPISODE_LOST}": np.array([False, True, False]),
    }
    infos = {"_final_obs": np.ones(3, bool), "final_info": final_info}
    episodes = finished_episodes(infos, np.arange(3.0), np.ones(3, np.int64))
    assert episodes == {row: {"length": length, "return": row, "steps": 1} for row, length in ((0, 7), (2, 9))}
    assert EpisodeWindow("length").add(episodes.values()) == 2


@pytest.mark.parametrize("value", [True, 0.25, np.float32(1), None])
def test_a_success_may_be_a_flag_or_a_share(value):
    infos = {"_final_obs": np.array([True]), "final_info": {"is_success": np.array([value], object)}}
    (episode,) = finished_episodes(infos, np.zeros(1), np.ones(1, np.int64)).values()
    assert episode.get("is_success") == value


def test_an_entry_of_the_environment_that_sounds_like_a_lost_episode_changes_nothing():
    infos = {"_final_obs": np.ones(1, bool), "final_info": {"episode_lost": np.array([True])}}
    episodes = finished_episodes(infos, np.zeros(1), np.ones(1, np.int64))
    assert episodes == {0: {"episode_lost": True, "return": 0.0, "steps": 1}}


def test_a_window_of_failures_alone_is_still_one_of_success(tmp_path):
    """The environment reports success only where there is one. 1,000 failures later nothing in the window says so."""
    window = EpisodeWindow(None)
    window.add([{"return": 1.0, "steps": 4, "is_success": True}])
    window.add([{"return": 0.5, "steps": 4}] * 1000)
    assert window.reports_success and window.hard_score() == (0.0, 100)
    assert window.summary()["rollout/success_rate"] == 0.0
    loaded = EpisodeWindow(None)
    loaded.load_state_dict(json.loads(json.dumps(window.state_dict())))
    assert loaded.reports_success
    earlier = {name: value for name, value in window.state_dict().items() if name != "reports_success"}
    loaded.load_state_dict(earlier)
    assert not loaded.reports_success  # states of before 30 November 2026 know of the window only


def test_a_perfect_player_has_full_success_though_some_streams_ask_nothing():
    """Through a whole update of a training. The log's returns and lengths count all episodes."""
    env = envs.make_vec_env("Collision-v0", 32, stream_length=8, grid=4)
    play = env.step
    env.step = lambda actions: play(env.unwrapped.target())
    model = PPO("none", env, num_envs=32, num_steps=200, device="cpu")
    model.learn(1)
    window = model._run.trainer.window
    asked = np.array([episode["asked"] for episode in window.recent])
    assert len(asked) == model.metrics["time/episodes"] > 100 and set(asked > 0) == {False, True}
    assert window.hard_score() == (1.0, len(window.hard)) and all(episode["asked"] for episode in window.hard)
    assert len(window.hard) == (asked > 0).sum() - 32 > window.hard_size  # one in each environment is not counted
    success = [name for name in model.metrics if name.startswith("success/")]
    assert success and {model.metrics[name] for name in (*success, "rollout/success_rate", "rollout/hard_score")} == {1}
    assert model.metrics["rollout/ep_rew_mean"] == pytest.approx((asked > 0)[-100:].mean())


ACCURACY = {"accuracy": ("right", "asked")}
NOTHING = {"return": 0.0, "steps": 4, "right": 0, "asked": 0}


def test_an_episode_that_asked_nothing_counts_until_success_is_reported():
    """Without success, its return is a score as any other. A saved window of earlier versions has it among the hard."""
    window = EpisodeWindow(None, ratios=ACCURACY)
    assert window.add([NOTHING, NOTHING]) == 2 and window.hard_score() == (0.0, 2)
    assert window.add([{**NOTHING, "asked": 1, "is_success": True}, NOTHING]) == 1
    assert window.hard_score() == (1.0, 1) and window.summary()["rollout/success_rate"] == 1.0
    assert [window.has_score(episode) for episode in window.recent] == [False, False, True, False]
    loaded = EpisodeWindow(None, ratios=ACCURACY)
    loaded.load_state_dict({**window.state_dict(), "hard": list(window.recent)})
    assert loaded.hard_score() == (1.0, 1)


@pytest.mark.parametrize(
    "ratios, entries",
    [
        (ACCURACY, {"asked": 2}),
        (ACCURACY, {"is_success": False}),
        ({}, {}),
        (None, {}),
        ({"accuracy": None}, {}),
        ({"accuracy": {"1": ("right", "asked")}}, {}),
    ],
)
def test_other_episodes_without_success_failed(ratios, entries):
    window = EpisodeWindow(None, ratios=ratios)
    window.add([{**NOTHING, "asked": 1, "is_success": True}, {**NOTHING, **entries}])
    assert window.hard_score() == (0.5, 2) and window.summary()["rollout/success_rate"] == 0.5


def test_a_window_of_episodes_that_asked_nothing_has_no_success_rate():
    window = EpisodeWindow(None, size=2, ratios=ACCURACY)
    window.add([{**NOTHING, "asked": 1, "is_success": True}, NOTHING, NOTHING])
    assert window.summary() == {"rollout/ep_rew_mean": 0.0, "rollout/ep_len_mean": 4.0, "rollout/hard_score": 1.0}


@pytest.mark.parametrize("num_actors", [1, 3])
def test_live_memories_are_averaged_over_an_episode_of_every_actor(num_actors):
    """Episodes are four rollouts long, in which memories grow from 1 to 4. The actors' rollouts come in turn."""
    window = EpisodeWindow(None, num_actors=num_actors)
    window.add([{"return": 0.0, "steps": 8}])
    for live in (1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0):
        window.live.extend([live] * num_actors)
        assert window.mean_live(2) == 2.5 or len(window.live) < 4 * num_actors


@pytest.mark.parametrize("num_actors", [1, 3])
@pytest.mark.parametrize("steps, of_an_episode", [(8, 4), (2 * MOST_ROLLOUTS, MOST_ROLLOUTS)])
@pytest.mark.parametrize("spans_released, queue", [(False, 0), (True, 0), (False, 2), (True, 2)])
def test_live_memories_are_measured_after_an_episode_of_every_actor(
    num_actors, steps, of_an_episode, spans_released, queue
):
    """After spans were released the episode must have begun afterwards, in a rollout that was asked for afterwards."""
    window = EpisodeWindow(None, num_actors=num_actors)
    window.add([{"return": 0.0, "steps": steps}])
    needed = num_actors * min(of_an_episode * (1 + spans_released) + queue, MOST_ROLLOUTS)
    window.live.extend([1.0] * (needed - 1))
    assert not window.is_live_measured(2, spans_released=spans_released, queue=queue)
    window.live.append(1.0)
    assert window.is_live_measured(2, spans_released=spans_released, queue=queue)
