"""Tests of episodes in which the agent is stuck. They count before they end, and a policy that gets stuck is not
kept."""

from __future__ import annotations

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
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.episodes import COUNTED, MEAN_EPISODES, RUNNING, EpisodeWindow
from expire_span_rl.agents.forgetting import ForgettingController
from expire_span_rl.agents.kept_policy import Candidate, PolicyKeeper
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
    """Of the latest 100, five took 1,000 steps, and the others up to 40."""
    window = EpisodeWindow(None)
    window.add([{"return": 1.0, "steps": 500}] * (MEAN_EPISODES - 1))
    assert math.isinf(window.long_after())
    window.add([{"return": 1.0, "steps": steps} for steps in [*[10] * 75, *[40] * 20, *[1000] * 5]])
    assert window.long_after() == pytest.approx(2 * np.quantile([10] * 75 + [40] * 20 + [1000] * 5, 0.95))
    assert 80 <= window.long_after() < 200


@pytest.mark.parametrize("difficulty_key", [None, "length"])
def test_a_running_episode_is_a_failed_hard_one_until_it_ends(difficulty_key):
    """It then counts as what it came to. It is no episode of the log, and is hard however hard it is."""
    window = EpisodeWindow(difficulty_key)
    won = {"return": 1.0, "steps": 20, "length": 8, "is_success": True}
    window.add([won] * 30)
    assert window.add([{"return": 0.2, "steps": 90, RUNNING: True} for _ in range(10)]) == 10
    assert window.hard_score() == (0.75, 40) and len(window.recent) == 30
    assert window.summary()["rollout/success_rate"] == 1 and window.summary()["rollout/ep_len_mean"] == 20
    again = EpisodeWindow(difficulty_key)
    again.load_state_dict(window.state_dict())
    for each in (window, again):
        assert each.add([{**won, COUNTED: True}] * 4) == 4
        assert each.hard_score() == (34 / 40, 40)
        each.add([{**won, "is_success": False, COUNTED: True}] * 6)
        assert each.hard_score() == (34 / 40, 40) and not any(RUNNING in episode for episode in each.hard)
    if difficulty_key is not None:  # easy ones leave, running ones among them
        window.add([{"return": 0.0, "steps": 90, RUNNING: True}])
        window.add([{**won, "length": 80}])
        assert window.hard_score() == (1, 1)


def test_an_episode_whose_place_newer_ones_took_does_not_count_again():
    window = EpisodeWindow(None, hard_size=4)
    lost, won = ({"return": 0.0, "steps": 9, "is_success": is_success} for is_success in (False, True))
    window.add([won] * 4)
    window.add([{"return": 0.0, "steps": 90, RUNNING: True}])
    assert window.hard_score() == (0.75, 4) and window.add([won] * 4, 0) == 4
    assert window.add([{**lost, COUNTED: True}], 0) == 0 and window.hard_score() == (1, 4)
    assert window.recent[-1] == {**lost, COUNTED: True}
    assert window.add([lost], 0) == 1 and window.hard_score() == (0.75, 4)


def test_returns_count_with_what_they_are_so_far():
    window = EpisodeWindow(None)
    window.add([{"return": 1.0, "steps": 20}] * 3)
    window.add([{"return": 0.0, "steps": 90, RUNNING: True}])
    assert window.hard_score() == (0.75, 4)
    window.add([{"return": 3.0, "steps": 99, COUNTED: True}])
    assert window.hard_score() == (1.5, 4)


def keeper_of(weights: list[int]) -> PolicyKeeper:
    """A keeper of a policy whose only weight is `weights[0]`, with a target of 0.9."""
    policy = SimpleNamespace(
        unreleased_reach=lambda: None, state_dict=lambda: {"weight": torch.tensor([float(weights[0])])}
    )
    controller = ForgettingController(ForgettingConfig(success_target=0.9))
    return PolicyKeeper(policy, controller)


def play(keeper: PolicyKeeper, weights: list[int], scores: list[float], trial: int = 2) -> list[int | None]:
    """Reviews and keeps policies with these scores, which all have 5 live memories. Returns which is the best after
    each."""
    best = []
    for score in scores:
        now = Candidate(Score(score, 200, True), 5.0, is_live_measured=True, timesteps=weights[0], trial=trial)
        keeper.review(now, 200)
        keeper.keep(now, is_tested=True)
        weights[0] += 1
        best.append(keeper.best and int(keeper.best.weights["weight"]))
    return best


def test_a_policy_on_trial_is_kept_if_the_constraint_goes_on_to_hold(tmp_path):
    """Policy 0 is on trial for two reviews. The next is policy 2. It fails, and so does 5. Policy 0 stays until policy
    7 has passed. Without one before it, a policy that fails its trial stays. A resumed training goes on alike."""
    weights = [0]
    keeper = keeper_of(weights)
    assert play(keeper, weights, [1, 1, 1, 1, 0.5, 1]) == [0, 0, 0, 0, 0, 0]
    again = keeper_of(weights)
    again.load_state(*through_a_file(keeper.state(), tmp_path))
    for each in (keeper, again):
        weights[0] = 6
        assert play(each, weights, [0.8, 1, 1, 1, 1]) == [0, 0, 0, 7, 7]
    weights = [0]
    assert play(keeper_of(weights), weights, [0.95, 0.1, 0.1, 1, 0.1, 1, 1, 1]) == [0, 0, 0, 0, 0, 0, 0, 5]
    weights = [0]
    assert play(keeper_of(weights), weights, [1, 1, 0.95, 0.5], trial=0) == [0, 1, 2, 2]


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
    assert trainer.best.weights["policy_head.bias"][0] == 20 and trainer.judge.keeper.kept is trainer.best
    assert trainer.best.timesteps <= 11 * trainer.rollout_size
    assert trainer.episodes == len(trainer.window.recent)
