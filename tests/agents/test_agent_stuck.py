"""Tests of episodes in which the agent is stuck. They count before they end, and a policy that gets stuck is not
kept."""

from __future__ import annotations

import json
import math
from collections import deque
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import Probe, make_policy, make_trainer, through_a_file

from expire_span_rl import envs
from expire_span_rl.agents import ForgettingConfig
from expire_span_rl.agents.actor import Actor, Request
from expire_span_rl.agents.checkpoint import not_finite
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.episodes import MEAN_EPISODES, EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.kept_policy import Candidate, PolicyKeeper
from expire_span_rl.agents.long_episodes import COUNTED, PRIOR, RUNNING
from expire_span_rl.agents.score_record import Score
from expire_span_rl.agents.stagger import NEVER

B = 8
LONG_AFTER = 10


class Trap(Probe):
    """The first action leads out after two steps, with a reward of 1, or into a trap for 40 steps, with 0.01 each."""

    steps = 40

    def reward(self, action):
        self.is_trapped = bool(action) if self.t == 0 else self.is_trapped
        return (0.01, False) if self.is_trapped else (float(self.t == 1), self.t == 1)

    def step(self, action):
        observation, reward, is_over, is_cut, info = super().step(action)
        return observation, reward, is_over, is_cut, {"is_success": not self.is_trapped} if is_over else info


if "Trap-v0" not in gym.registry:
    gym.register("Trap-v0", entry_point=Trap)


def make_collector(long_after: float = LONG_AFTER, id: str = "Trap-v0", **env_kwargs) -> Collector:
    env = envs.make_vec_env(id, B, **env_kwargs)
    collector = Collector(env, make_policy(env, "none", heads=0.1), 4, 5)
    collector.cut_after = np.full(B, NEVER)
    collector.long_after = long_after
    return collector


def in_rollouts(collector: Collector, rollouts: int, lengths: list[int], returns: list[float]) -> list[list[dict]]:
    """What `collector` reports in each of some rollouts. lengths, returns: of each environment's episode so far, which
    are brought up to date. Checks that the running episodes are those that came to be long in the rollout."""
    reported = []
    for _ in range(rollouts):
        before = list(lengths)
        rollout, episodes = collector.collect()
        for t in range(collector.num_steps):
            for row in range(B):
                lengths[row] += 1
                returns[row] += float(rollout.rewards[t, row])
                if rollout.terminated[t, row] or rollout.truncated[t, row]:
                    lengths[row], returns[row], before[row] = 0, 0.0, 0
        long = [row for row in range(B) if before[row] <= LONG_AFTER < lengths[row]]
        running = [episode for episode in episodes if RUNNING in episode]
        assert [(episode["steps"], episode["return"]) for episode in running] == [
            (lengths[row], pytest.approx(returns[row])) for row in long
        ]
        reported.append(episodes)
    return reported


def test_an_episode_that_runs_for_long_is_reported_once(tmp_path):
    """Also by a collector that is continued or restored, and by an actor. Once it ends it is marked."""
    lengths, returns = [0] * B, [0.0] * B
    trap = make_collector()
    ended = [episode for episodes in in_rollouts(trap, 30, lengths, returns) for episode in episodes]
    ended = [episode for episode in ended if RUNNING not in episode]
    assert {episode["steps"] for episode in ended} == {2, 40}
    assert all((COUNTED in episode) == (episode["steps"] == 40) for episode in ended)
    left, right = (make_collector(id="Corridor-v0", max_length=30) for _ in range(2))
    lengths, returns = [0] * B, [0.0] * B
    in_rollouts(left, 14, lengths, returns)
    snapshot, state = left.snapshot(), through_a_file(left.state(), tmp_path)
    assert left.counted.any() and not left.counted.all()
    copies = [(list(lengths), list(returns)) for _ in range(2)]
    late = in_rollouts(left, 9, lengths, returns)
    left.restore(snapshot)
    assert in_rollouts(left, 9, *copies[0]) == late
    assert right.load_state(*state)
    assert in_rollouts(right, 9, *copies[1]) == late
    assert any(RUNNING in episode for episodes in late for episode in episodes)
    actor = Actor(lambda: make_collector().env, trap.policy, 4, 4, 5)
    weights = {name: tensor.numpy().copy() for name, tensor in actor.policy.state_dict().items()}
    request = Request(0, long_after=LONG_AFTER)
    delivered = [actor.collect(weights, request).episodes for _ in range(40)]
    assert any(RUNNING in episode for episodes in delivered for episode in episodes)


def test_no_running_episode_is_reported_unless_that_is_asked_for():
    collector = make_collector(long_after=math.inf)
    assert not any(RUNNING in episode for _ in range(18) for episode in collector.collect()[1])


def test_an_episode_is_long_after_twice_what_most_of_the_latest_took():
    """Of the latest 100, 95 took up to 40 steps, and the others 1,000."""
    window = EpisodeWindow(None)
    window.add([{"return": 1.0, "steps": 500}] * (MEAN_EPISODES - 1))
    assert math.isinf(window.long_after())
    steps = [*[10] * 75, *[40] * 20, *[1000] * 5]
    window.add([{"return": 1.0, "steps": number} for number in steps])
    assert window.long_after() == pytest.approx(2 * np.quantile(steps, 0.95)) == pytest.approx(176)


WON = {"return": 1.0, "steps": 20, "length": 8, "is_success": True}


@pytest.mark.parametrize("difficulty_key", [None, "length"])
def test_an_episode_that_takes_long_counts_once(difficulty_key, tmp_path):
    """While it runs, as a failure as long as none such has succeeded. It is no episode of the log then. Once it ends it
    is, but it is no hard one again, also if the hard ones were cleared in between."""
    window = EpisodeWindow(difficulty_key)
    window.add([WON] * 30)
    assert window.add([{"return": 0.2, "steps": 90, RUNNING: True} for _ in range(10)]) == 10
    assert window.hard_score() == (0.75, 40) and len(window.recent) == 30 and len(window.running) == 10
    assert window.summary()["rollout/success_rate"] == 1 and window.summary()["rollout/ep_len_mean"] == 20
    assert window.add([{**WON, COUNTED: True}] * 4) == 0 and not window.running
    assert window.hard_score() == (0.75, 40) and len(window.recent) == 34
    window.hard.clear()
    assert window.add([{**WON, "is_success": False, COUNTED: True}] * 6) == 0 and not window.hard
    again = EpisodeWindow(difficulty_key)
    again.load_state_dict(json.loads(json.dumps(window.state_dict())))
    for each in (window, again):  # four of ten have succeeded
        each.add([{"return": 0.2, "steps": 90, RUNNING: True}])
        assert each.hard_score() == (pytest.approx(4 / (10 + PRIOR)), 1)
    if difficulty_key is not None:  # easy ones leave
        window.add([{**WON, "length": 80}])
        assert window.hard_score() == (1, 1)


def test_where_few_episodes_are_hard_as_few_running_ones_count():
    """One of four is. How hard a running one is, is not known."""
    window = EpisodeWindow("length")
    window.add([{**WON, "length": length} for length in (2, 2, 2, 8)] * 5)
    new = [window.add([{"return": 0.0, "steps": 90, RUNNING: True}]) for _ in range(12)]
    assert new == [0, 0, 0, 1] * 3 and window.hard_score() == (5 / 8, 8)


def test_long_episodes_that_end_well_are_expected_to():
    """Three in a hundred take long, and all succeed. Without this the mean would be 0.97."""
    window = EpisodeWindow(None)
    for _ in range(60):
        window.add([WON] * 97 + [{"return": 0.0, "steps": 90, RUNNING: True}] * 3)
        window.add([{**WON, "steps": 400, COUNTED: True}] * 3)
    assert window.hard_score()[0] > 0.997


def test_returns_of_running_episodes_are_those_so_far_until_others_have_ended():
    window = EpisodeWindow(None)
    window.add([{"return": 1.0, "steps": 20}] * 3)
    window.add([{"return": 0.2, "steps": 90, RUNNING: True}])
    assert window.hard_score() == (pytest.approx(0.8), 4) and not window.reports_success
    window.add([{"return": -3.0, "steps": 99, COUNTED: True}] * 5)
    window.hard.clear()
    window.add([{"return": 0.2, "steps": 90, RUNNING: True}])
    assert window.hard_score() == (pytest.approx((5 * -3.0 + PRIOR * 0.2) / (5 + PRIOR)), 1)


def keeper_of(weights: list[int], reach: float | None = None) -> PolicyKeeper:
    """A keeper of a policy whose only weight is `weights[0]`, with a target of 0.9."""
    policy = SimpleNamespace(
        unreleased_reach=lambda: reach, state_dict=lambda: {"weight": torch.tensor([float(weights[0])])}
    )
    controller = ForgettingController(ForgettingConfig(success_target=0.9))
    return PolicyKeeper(policy, controller)


def play(
    keeper: PolicyKeeper, weights: list[int], running: list[list[int]], *, trial: int = 2, score: float = 1.0
) -> list[int | None]:
    """Reviews and keeps policies with this score of 200 episodes, which all have 5 live memories. running: for each,
    how many rollouts ago episodes began that fail. Returns which is the best after each."""
    best = []
    for began in running:
        now = Candidate(Score(score, 200, True), 5.0, is_live_measured=True, timesteps=weights[0], trial=trial)
        keeper.review(now, 200, running=[(ago, 0.0) for ago in began])
        keeper.keep(now, is_tested=True)
        weights[0] += 1
        best.append(keeper.best and int(keeper.best.weights["weight"]))
    return best


def test_a_policy_fails_its_trial_by_its_own_episodes_that_take_long(tmp_path):
    """Policy 0 is on trial for two reviews, then policy 2, and so on. Of 200 episodes and 30 that are stuck fewer than
    90% succeed. 30 that other policies have begun, or 15 of its own, do not matter. A resumed training goes on
    alike."""
    stuck = [1] * 30
    weights = [0]
    assert play(keeper_of(weights), weights, [[], [2] * 30, stuck, [2] * 15, [], [1] * 30]) == [0, 0, 0, 0, 2, 2]
    weights = [0]
    keeper = keeper_of(weights)
    assert play(keeper, weights, [[], [], [], stuck[:15]]) == [0, 0, 0, 0]
    again = keeper_of(weights)
    again.load_state(*through_a_file(keeper.state(), tmp_path))
    for each in (keeper, again):
        weights[0] = 4
        assert play(each, weights, [[2] * 15, [], [], [], []]) == [0, 0, 4, 4, 6]
    keeper.kept.before.weights["weight"][0] = math.nan
    assert "best_before/weight" in not_finite(keeper.state()[0])


def test_a_policy_that_fails_its_trial_with_none_before_it_is_dropped():
    weights = [0]
    assert play(keeper_of(weights), weights, [[]]) == [0]
    weights = [0]
    keeper = keeper_of(weights)
    assert play(keeper, weights, [[], [1] * 30, []]) == [0, 1, 1]
    weights = [0]
    assert play(keeper_of(weights), weights, [[]] * 4, trial=0) == [0, 1, 2, 3]


def test_later_scores_do_not_decide_a_trial():
    """The target is missed by policies 1 to 3, which later weights are to blame for. Policy 0 stays."""
    weights = [0]
    keeper = keeper_of(weights)
    play(keeper, weights, [[]])
    assert play(keeper, weights, [[]] * 3, score=0.5) == [0, 0, 0]
    assert play(keeper, weights, [[]] * 3) == [0, 0, 4]


def test_one_whose_spans_are_released_need_not_pass_first():
    """Policy 0 was kept before spans were released. It forgets nothing. Policy 2 may fail its trial all the same."""
    weights = [0]
    keeper = keeper_of(weights, reach=100.0)
    assert play(keeper, weights, [[], []]) == [0, 0]
    keeper.policy = keeper_of(weights).policy
    assert play(keeper, weights, [[]]) == [2] and not keeper.kept.before.released
    assert play(keeper, weights, [[1] * 30]) == [3] and keeper.kept.before.timesteps == 0


def test_an_evaluation_needs_no_trial():
    weights = [0]
    keeper = keeper_of(weights)
    play(keeper, weights, [[]], trial=5)
    assert play(keeper, weights, [[]], trial=0) == [1] and keeper.kept.trial == 0


def test_a_policy_that_gets_stuck_is_not_kept():
    """From update 12 on half of the episodes lead into the trap, where they take 40 steps. In that update all that end
    went well. The weights are the test's own."""
    trainer = make_trainer(
        "Trap-v0", "none", 1000, num_envs=64, num_steps=4, learning_rate=0.0, forgetting=ForgettingConfig()
    )
    policy = trainer.policy
    with torch.no_grad():
        policy.policy_head.weight.zero_()
        policy.policy_head.bias.copy_(torch.tensor([20.0, -20.0]))
    trainer.collector.cut_after = np.full(64, NEVER)
    trainer.window.recent = deque(maxlen=10_000)
    scores, ended = [], []
    for update in range(15):
        if update == 12:
            policy.policy_head.bias.data.zero_()
        metrics = trainer.update()
        scores.append(metrics["rollout/hard_score"])
        ended.append(metrics["rollout/success_rate"])
    assert min(scores[:13]) == min(ended) == 1 and max(scores[13:]) < 0.9, "the trap has not ended any"
    assert trainer.best.weights["policy_head.bias"][0] == 20
    assert 9 * trainer.rollout_size <= trainer.best.timesteps <= 11 * trainer.rollout_size
    assert trainer.episodes == len(trainer.window.recent)


def test_only_policies_that_played_a_whole_rollout_are_on_trial(monkeypatch):
    """Where actors lag behind, it says nothing of the present policy's own episodes. A trial lasts 2% of the training
    at most."""
    trainer = make_trainer("Trap-v0", "none", 500, num_envs=B, num_steps=4)
    judge = trainer.judge
    assert judge._trial(500) == 0, "no episode has ended"
    trials = []
    for long_after in (3, 4, 11.9, 40, 400):
        trainer.collector.long_after = long_after
        trials.append(judge._trial(500))
    assert trials == [1, 2, 3, 10, 10] and judge._trial(49) == 0
    monkeypatch.setattr(Collector, "on_policy", False)
    assert judge._trial(500) == 0
