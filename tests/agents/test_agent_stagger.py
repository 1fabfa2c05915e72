"""Episodes of one length that began together are cut once, so that they no longer end together."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from agent_cases import make_policy, through_a_file
from gymnasium import spaces

from expire_span_rl import envs
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.rollout import acting_learning_difference
from expire_span_rl.agents.stagger import UNKNOWN, rows_to_cut

B = 4
LENGTH = 7  # of an episode: a T-maze of 7 ends after 8 steps
T = 12


def make_collector(id: str = "TMaze-v0", **kwargs) -> Collector:
    env = envs.make_vec_env(id, B, **(kwargs or {"length": LENGTH}))
    return Collector(env, make_policy(env, "expire_span", heads=0.1), T, 5)


def test_each_environment_is_cut_once_at_its_part_of_the_length():
    none, all_over = np.zeros(B, bool), np.ones(B, bool)
    rows, cut_after = rows_to_cut(np.full(B, UNKNOWN), np.full(B, 3), none)
    assert not len(rows)
    rows, cut_after = rows_to_cut(cut_after, np.full(B, 8), all_over)
    assert not len(rows)
    assert cut_after.tolist() == [0, 2, 4, 6]
    cut = {}
    for step in range(1, 9):
        rows, cut_after = rows_to_cut(cut_after, np.full(B, step), none)
        for row in rows:
            cut[int(row)] = step
    assert cut == {1: 2, 2: 4, 3: 6}
    assert not cut_after.any()
    assert not len(rows_to_cut(cut_after, np.full(B, 8), all_over)[0]), "once is enough"


def test_an_episode_that_ended_before_is_not_cut_and_one_environment_never_is():
    _, cut_after = rows_to_cut(np.full(2, UNKNOWN), np.array([10, 10]), np.ones(2, bool))
    rows, cut_after = rows_to_cut(cut_after, np.array([3, 5]), np.array([False, True]))
    assert not len(rows)
    assert not cut_after.any()
    _, alone = rows_to_cut(np.full(1, UNKNOWN), np.array([10]), np.ones(1, bool))
    assert alone.tolist() == [-1]


def test_rollouts_then_have_starts_at_different_steps():
    """The cut episodes are bootstrapped as truncated ones, do not count, and acting still equals learning."""
    collector = make_collector()
    starts, truncated, ended = [], [], []
    for _ in range(4):
        rollout, episodes = collector.collect()
        assert acting_learning_difference(collector.policy, rollout) < 1e-4
        starts.append(rollout.episode_start)
        truncated.append(rollout.truncated)
        ended += episodes
    starts, truncated = torch.cat(starts), torch.cat(truncated)
    steps = [torch.nonzero(starts[:, b]).flatten().tolist() for b in range(B)]
    assert [row[:3] for row in steps] == [[0, 8, 16], [0, 8, 10], [0, 8, 12], [0, 8, 14]]
    assert all(b - a == 8 for row in steps for a, b in itertools.pairwise(row[2:]))
    assert truncated.nonzero().tolist() == [[9, 1], [11, 2], [13, 3]]
    assert {episode["steps"] for episode in ended} == {8}
    first = starts.roll(-1, 0)[:-1] & truncated[:-1]
    assert first.sum() == 3


class EarlyEnds(gym.Env):
    """Episodes that end by chance, and after nine steps at the latest."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        is_over = self.np_random.random() < 0.2
        return np.full(1, self.t / 10, np.float32), float(is_over), is_over, self.t == 9, {}


def test_a_cut_while_another_episode_ends_has_one_final_observation():
    """Its last one, although the vector's infos have something for its row too."""
    env = envs.make_vec_env(EarlyEnds, 16, vectorization="sync")
    collector = Collector(env, make_policy(env, "transformer_xl", heads=0.1), T, 5)
    num_cuts = 0
    for _ in range(6):
        cut_after = 1 + np.arange(16) % 8
        collector.cut_after = cut_after
        rollout, episodes = collector.collect()
        pairs = list(zip(*(index.tolist() for index in rollout.final_at), strict=True))
        assert len(pairs) == len(set(pairs))
        assert acting_learning_difference(collector.policy, rollout) < 1e-4
        num_cuts += int((rollout.terminated | rollout.truncated).sum()) - len(episodes)
    assert num_cuts > 20


def test_a_continued_collector_cuts_the_same(tmp_path):
    left, right = make_collector(), make_collector()
    left.collect()
    assert right.load_state(*through_a_file(left.state(), tmp_path))
    for _ in range(2):
        rollouts = [collector.collect()[0] for collector in (left, right)]
        assert torch.equal(rollouts[0].episode_start, rollouts[1].episode_start)
        assert torch.equal(rollouts[0].actions, rollouts[1].actions)
    snapshot = right.snapshot()
    before = right.cut_after.copy()
    right.cut_after = before + 1
    right.restore(snapshot)
    assert right.cut_after.tolist() == before.tolist()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_others_environments_begin_their_next_episodes_too(vectorization):
    env = envs.make_vec_env("MiniGrid-MemoryS7-v0", 3, vectorization=vectorization)
    other = envs.make_vec_env("MiniGrid-MemoryS7-v0", 3, vectorization="sync")
    env.reset(seed=5)
    other.reset(seed=5)
    first = env.begin_next(np.array([0, 2]))
    rows = [other.begin_next(np.array([row])) for row in (0, 2)]
    for name, entry in first.items():
        assert np.array_equal(entry, np.concatenate([row[name] for row in rows])), name
    actions = np.array([2, 2, 2])
    observations = [each.step(actions)[0] for each in (env, other)]
    for name, entry in observations[0].items():
        assert np.array_equal(entry, observations[1][name]), name
    env.close()


def test_episodes_that_begin_together_again_are_cut_again(monkeypatch):
    """A rollout was given up, and the environments cannot go back to where they were."""
    collector = make_collector()
    monkeypatch.setattr(collector, "_env_state", dict)
    collector.collect()
    assert not (collector.cut_after == UNKNOWN).any()
    collector.restore(collector.snapshot())
    rollout, _ = collector.collect()
    ends = rollout.terminated | rollout.truncated
    assert ends[LENGTH].all() and not ends[LENGTH + 1 :].all(1).any()
    assert (ends[LENGTH + 1 :].sum(1) == 1).sum() >= B // 2, "cut one by one"
