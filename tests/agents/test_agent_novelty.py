"""The reward for observations that are new in their episode.

T time steps, B environments.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_cases import make_policy, make_trainer, through_a_file

from expire_span_rl import envs
from expire_span_rl.agents import AGENTS
from expire_span_rl.agents import novelty as novelty_module
from expire_span_rl.agents.actor import Actor, Request
from expire_span_rl.agents.collector import Collector
from expire_span_rl.agents.novelty import LARGEST, MOST_WORTH, RECENT_EPISODES, EpisodicNovelty, NoveltyBonus
from expire_span_rl.agents.rollout import Rollout
from expire_span_rl.agents.transport import pack

T, B = 24, 4
TMAZE = {"length": 7}  # its episodes end together, and the next ones are cut
MINIGRID = "MiniGrid-MemoryS7-v0"
OWN = ("previous_action", "previous_reward")


def make_collector(env_id: str = MINIGRID, novelty: bool = True, **env_kwargs) -> Collector:
    env = envs.make_vec_env(env_id, B, **env_kwargs)
    return Collector(env, make_policy(env, "expire_span", heads=0.1), T, 5, novelty=novelty)


def slow_novelty(rollouts: list[Rollout]) -> np.ndarray:
    """[steps, B], all but the last one, from the observations alone."""
    names = [name for name in rollouts[0].observation if name not in OWN]
    entries = [torch.cat([rollout.observation[name] for rollout in rollouts]).numpy() for name in names]
    starts = torch.cat([rollout.episode_start for rollout in rollouts]).numpy()
    codes = [[b"".join(entry[t, b].tobytes() for entry in entries) for b in range(B)] for t in range(len(starts))]
    visits: dict[bytes, float] = dict.fromkeys(itertools.chain(*codes), 0.0)
    seen: list[set[bytes]] = [{code} for code in codes[0]]
    episodes = float(B)
    novelty = np.zeros((len(starts) - 1, B))
    for t in range(1, len(starts)):
        new = [b for b in range(B) if not starts[t, b] and codes[t][b] not in seen[b]]
        for b in new:
            visits[codes[t][b]] += 1
            seen[b].add(codes[t][b])
        for b in new:
            novelty[t - 1, b] = min((max(episodes, LARGEST**2) / visits[codes[t][b]]) ** 0.5, LARGEST)
        begun = np.flatnonzero(starts[t])
        for b in begun:
            seen[b] = {codes[t][b]}
        fading = (1 - 1 / RECENT_EPISODES) ** len(begun)
        visits = {code: fading * count for code, count in visits.items()}
        episodes = fading * episodes + len(begun)
    return novelty


@pytest.mark.parametrize(("env_id", "env_kwargs"), [(MINIGRID, {}), ("TMaze-v0", TMAZE), ("CartPole-v1", {})])
def test_it_is_what_the_episode_has_not_had(env_id, env_kwargs):
    """Over the borders of rollouts, and in episodes that are cut."""
    collector = make_collector(env_id, **env_kwargs)
    rollouts = [collector.collect()[0] for _ in range(4)]
    novelty = torch.cat([rollout.novelty for rollout in rollouts]).numpy()
    np.testing.assert_allclose(novelty[:-1], slow_novelty(rollouts), rtol=1e-5)
    assert novelty.any()
    ends = torch.cat([rollout.terminated | rollout.truncated for rollout in rollouts]).numpy()
    assert ends.any() or env_id == MINIGRID
    assert not novelty[ends].any()


def test_what_the_agent_did_or_got_makes_nothing_new():
    novelty, none = EpisodicNovelty(2), np.zeros(2, bool)
    first = {"image": np.array([[1, 2], [1, 2]], np.uint8), OWN[0]: np.array([0, 0]), OWN[1]: np.zeros(2, np.float32)}
    novelty.add(first, ~none)
    own = {OWN[0]: np.array([3, 4]), OWN[1]: np.ones(2, np.float32)}
    assert novelty.add({**first, **own}, none).tolist() == [0, 0]


def test_what_few_episodes_had_counts_more():
    """One over the root of the share of episodes, which is bounded. The first observation of an episode counts 0."""
    batch, few = 50, 20
    novelty, none, some = EpisodicNovelty(batch), np.zeros(batch, bool), np.arange(batch) < few
    zeros, ones = ({"image": np.full((batch, 1), value, np.uint8)} for value in range(2))
    episodes = 0.0
    for _ in range(6):
        assert not novelty.add(zeros, ~none).any()
        episodes = episodes * (1 - 1 / RECENT_EPISODES) ** batch + batch
    seen_by_some = novelty.add({"image": some[:, None].astype(np.uint8)}, none)
    np.testing.assert_allclose(seen_by_some, some * (episodes / few) ** 0.5, rtol=1e-5)
    copy = novelty.copy()
    np.testing.assert_allclose(novelty.add(ones, none), ~some * (episodes / batch) ** 0.5, rtol=1e-5)
    begins = np.arange(batch) == 0
    np.testing.assert_allclose(copy.add(ones, begins), ~some * (episodes / batch) ** 0.5, rtol=1e-5)
    assert not copy.add(ones, none).any(), "an episode began with it"
    assert copy.add(zeros, none).tolist() == [LARGEST, *[0] * (batch - 1)], "the new episode had not had it"
    assert novelty.add({"image": (2 * begins)[:, None].astype(np.uint8)}, none)[0] == LARGEST


def test_what_is_never_seen_again_counts_the_same_from_the_start():
    """Real numbers and noise: less the mean, nothing is added."""
    novelty, none = EpisodicNovelty(2), np.zeros(2, bool)
    numbers = np.random.default_rng(0).random((3000, 2, 1))
    novelty.add({"numbers": numbers[0]}, ~none)
    assert all(novelty.add({"numbers": entry}, none).tolist() == [LARGEST] * 2 for entry in numbers[1:])


def test_what_is_rare_is_forgotten_where_too_much_is_counted(monkeypatch):
    """Of four observations that may be counted, those that both environments had stay."""
    monkeypatch.setattr("expire_span_rl.agents.novelty.MOST_COUNTED", 4)
    novelty, none = EpisodicNovelty(2), np.zeros(2, bool)
    novelty.add({"n": np.array([0, 0])}, ~none)
    for values in ([1, 1], [2, 2], [3, 4], [5, 5]):
        novelty.add({"n": np.array(values)}, none)
    assert len(novelty.state_dict()["counted"]) == 2
    counts = novelty.state_dict()["counts"]
    assert (counts == 2 / (1 - 1 / RECENT_EPISODES) ** 2).all()


def test_of_an_endless_episode_the_latest_observations_are_remembered(monkeypatch):
    """Of 9 observations the last 5 are: beyond 8 the older half goes. A copy and a continued state have the same."""
    monkeypatch.setattr("expire_span_rl.agents.novelty.MOST_SEEN", 8)
    novelty, none = EpisodicNovelty(1), np.zeros(1, bool)
    novelty.add({"n": np.array([0])}, ~none)
    for n in range(1, 9):
        novelty.add({"n": np.array([n])}, none)
    again = EpisodicNovelty(1)
    again.load_counts(novelty.state_dict())
    again.load_episodes(novelty.state_dict())
    for each in (novelty.copy(), again, novelty):
        assert [bool(each.add({"n": np.array([n])}, none)[0]) for n in (8, 7, 6, 5, 4)] == [False] * 5
        assert each.add({"n": np.array([3])}, none)[0] > 0


def test_counts_stay_finite_over_many_episodes(monkeypatch):
    """The weight of an episode grows with their number, and is brought back to 1. What is counted stays the same."""
    observations = [{"n": np.array([n % 3, n % 5])} for n in range(400)]
    starts = [np.array([n % 4 == 0, n % 7 == 0]) for n in range(400)]
    expected = EpisodicNovelty(2)
    left = [expected.add(*pair) for pair in zip(observations, starts, strict=True)]
    monkeypatch.setattr("expire_span_rl.agents.novelty._LARGEST_WEIGHT", 1.05)
    actual = EpisodicNovelty(2)
    right = [actual.add(*pair) for pair in zip(observations, starts, strict=True)]
    np.testing.assert_allclose(left, right, rtol=1e-5)
    assert expected.state_dict()["weight"] > 1.1 and actual.state_dict()["weight"] <= 1.05


def test_a_state_of_the_first_version_begins_to_count_anew():
    novelty = EpisodicNovelty(2)
    state = {"codes": np.array([3, 4]), "sizes": np.array([2, 0]), "visits": np.zeros(8)}
    novelty.load_counts(state)
    novelty.load_episodes(state)
    assert novelty.state_dict()["codes"].tolist() == [3, 4] and not len(novelty.state_dict()["counted"])


def test_a_continued_collector_a_restored_one_and_an_actor_count_the_same(tmp_path):
    left, right = make_collector("Portal-v0"), make_collector("Portal-v0")
    left.collect()
    assert right.load_state(*through_a_file(left.state(), tmp_path))
    snapshot = right.snapshot()
    expected = [left.collect()[0].novelty for _ in range(2)]
    assert torch.equal(right.collect()[0].novelty, expected[0])
    right.restore(snapshot)
    assert all(torch.equal(right.collect()[0].novelty, each) for each in expected)

    collector = make_collector()
    actor = Actor(lambda: make_collector().env, collector.policy, T, T, seed=5, novelty=True)
    weights = {name: tensor.numpy() for name, tensor in collector.policy.state_dict().items()}
    delivered = actor.collect(weights, Request(0)).rollout["novelty"]
    assert np.array_equal(delivered, pack(collector.collect()[0])["novelty"]) and delivered.any()


def test_nothing_is_counted_unless_it_is_asked_for():
    collector = make_collector(novelty=False)
    assert collector.novelty is None and not collector.collect()[0].novelty.any()
    with pytest.raises(ValueError, match="the codes of 2 environments, got those of 4"):
        EpisodicNovelty(2).load_episodes(EpisodicNovelty(4).state_dict())


@pytest.mark.parametrize("agent", ["ppo", "impala"])
def test_the_learner_adds_it_to_scaled_rewards_and_it_falls_to_nothing(agent, monkeypatch):
    """Less its mean. Steps that end an episode get nothing."""
    monkeypatch.setattr(novelty_module, "MOST_WORTH", math.inf)
    collector = make_collector()
    rollout, _ = collector.collect()
    terminated = torch.zeros_like(rollout.terminated)
    terminated[3, 1] = True
    novelty = rollout.novelty.masked_fill(terminated, 0)
    rollout = replace(rollout, rewards=torch.full_like(rollout.rewards, 3.0), terminated=terminated, novelty=novelty)
    learner_class = AGENTS[agent].load()
    learner = learner_class(collector.policy, learner_class.Config(novelty_coef=0.5, num_minibatches=2), B, 0)
    learned: list[torch.Tensor] = []
    monkeypatch.setattr(learner, "_learn", lambda rollout, weights: learned.append(rollout.rewards) or {})
    for progress, failure_rate, share in ((0.0, 1.0, 0.5), (0.5, 1.0, 0.25), (0.5, 0.2, 0.01), (1.0, 1.0, 0.0)):
        learner.failure_rate = failure_rate
        metrics = learner.update(rollout, progress, 0.0)
        scaled = rollout.rewards / learner.reward_scale.value
        goes_on = ~(rollout.terminated | rollout.truncated)
        mean = novelty[goes_on].mean()
        torch.testing.assert_close(learned[-1][goes_on], (scaled + share * (novelty - mean))[goes_on])
        assert torch.equal(learned[-1][~goes_on], scaled[~goes_on])
        assert metrics["train/novelty_coef"] == pytest.approx(share)
        assert metrics["train/novelty"] == pytest.approx(float(mean))


def test_an_episode_is_worth_at_most_so_much():
    """However much there is to see. Two episodes end in the rollout."""
    collector = make_collector()
    rollout, _ = collector.collect()
    ends = torch.zeros_like(rollout.terminated)
    ends[2, 0] = ends[5, 1] = True
    novelty = torch.rand(ends.shape, generator=torch.Generator().manual_seed(0)).masked_fill(ends, 0)
    no_truncation = torch.zeros_like(ends)
    rollout = replace(rollout, terminated=ends, truncated=no_truncation, novelty=novelty)
    worth = float(novelty.sum()) / 2
    with_little, metrics = NoveltyBonus().apply(rollout, 0.9 * MOST_WORTH / worth)
    assert metrics["train/novelty_coef"] == pytest.approx(0.9 * MOST_WORTH / worth)
    with_most, metrics = NoveltyBonus().apply(rollout, 3.0 * MOST_WORTH / worth)
    assert metrics["train/novelty_coef"] == pytest.approx(MOST_WORTH / worth)
    little, most = with_little.rewards - rollout.rewards, with_most.rewards - rollout.rewards
    torch.testing.assert_close(little / 0.9, most, rtol=1e-4, atol=1e-5)
    unchanged, metrics = NoveltyBonus().apply(replace(rollout, novelty=torch.zeros_like(novelty)), 0.1)
    assert torch.equal(unchanged.rewards, rollout.rewards) and metrics["train/novelty_coef"] == pytest.approx(0.1)


@pytest.mark.parametrize("batch", [2, 8, 64])
def test_a_long_episode_is_worth_no_more(batch):
    """Episodes of 1,024 steps in rollouts of 64, which begin at different times: most rollouts of few environments see
    no end. What is counted is a training's state."""
    rollout, _ = make_collector().collect()
    length, steps = 1024, 64
    bonus, worth, ends = NoveltyBonus(), 0.0, 0
    for index in range(96):
        step = (torch.arange(batch) * length // batch + index * steps + torch.arange(steps)[:, None]) % length
        over = step == length - 1
        rewards = torch.zeros(steps, batch)
        novelty = torch.where(over, 0.0, 10.0)
        part = replace(rollout, rewards=rewards, terminated=over, truncated=torch.zeros_like(over), novelty=novelty)
        if index % 7 == 0:
            saved, bonus = bonus.state_dict(), NoveltyBonus()
            bonus.load_state_dict(saved)
        _, metrics = bonus.apply(part, 1.0)
        if index >= 32:  # after a few episodes
            worth += metrics["train/novelty_coef"] * float(novelty.sum())
            ends += int(over.sum())
    assert worth / ends == pytest.approx(MOST_WORTH, rel=0.2)


def test_counts_outlast_environments_that_cannot_save_their_state():
    """All episodes begin anew. What was seen before the interruption is not new again."""
    trainer, resumed = (make_trainer("CartPole-v1", "none", 10, num_envs=4, novelty_coef=0.1) for _ in range(2))
    trainer.update()
    tensors, metadata = trainer.state()
    assert not resumed.load_state(tensors, metadata)
    assert resumed.collector.novelty._visits.items() >= trainer.collector.novelty._visits.items()
    assert resumed.collector.novelty._episodes > trainer.collector.novelty._episodes
