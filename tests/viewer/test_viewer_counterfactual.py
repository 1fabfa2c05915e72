"""The counterfactual of an episode without a memory, and the page that shows both."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from viewer_browser import NARROW, WIDE, make_page
from viewer_cases import ROOT, SHIPPED, STORING, make_policy, play_steps

from expire_span_rl.envs import make_env
from expire_span_rl.policies.transformer.slots import GONE
from expire_span_rl.viewer.counterfactual import play_counterfactual
from expire_span_rl.viewer.play import Forgetting, play, tensors_of
from expire_span_rl.visualization import show_in

GRU = str(ROOT / "pretrained" / "portal-gru.safetensors")


@pytest.mark.parametrize("kind", STORING)
def test_the_observation_is_gone_from_every_layer_and_the_rest_is_acted_anew(kind):
    """Compares with acting in one piece, where the slots are removed from the buffers by hand."""
    policy = make_policy(kind)
    episode = play_steps(policy, 30)
    written, step = 5, 12
    script = episode.actions[:step]
    forgetting = Forgetting(step, written)
    counterfactual = play(policy, make_env("Corridor-v0"), 3, 30, True, chunk=8, script=script, forgetting=forgetting)
    assert counterfactual.actions[:step].tolist() == episode.actions[:step].tolist()
    observations = tensors_of(policy, counterfactual.observations)
    acting = policy.begin(policy.initial_memory(1), 30)
    for t in range(30):
        if t == written + 1:
            for layer in acting.layers:
                layer.slots.position[0, written] = GONE
        params, value = policy.step({k: v[t] for k, v in observations.items()}, acting, torch.tensor([t == 0]))
        np.testing.assert_allclose(params.softmax(-1)[0], counterfactual.marginals[t], atol=2e-4)
        assert float(value) == pytest.approx(counterfactual.values[t], abs=2e-3)
        if t >= step:
            assert counterfactual.actions[t] == params.argmax()


def test_a_state_is_emptied_at_the_decision():
    policy = make_policy("gru")
    episode = play_steps(policy, 20)
    counterfactual = play(
        policy, make_env("Corridor-v0"), 3, 20, True, script=episode.actions[:7], forgetting=Forgetting(7, None)
    )
    np.testing.assert_allclose(counterfactual.marginals[:7], episode.marginals[:7], atol=1e-5)
    alone = {key: value[7] for key, value in tensors_of(policy, counterfactual.observations).items()}
    params, _ = policy.step(alone, policy.begin(policy.initial_memory(1), 1), torch.tensor([True]))
    np.testing.assert_allclose(params.softmax(-1)[0], counterfactual.marginals[7], atol=1e-5)
    assert np.abs(counterfactual.marginals[7] - episode.marginals[7]).max() > 1e-3


class Unrepeatable(gym.Env):
    """Its observations do not depend on the seed alone."""

    observation_space, action_space, count = spaces.Discrete(1000), spaces.Discrete(2), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action):
        return self._observation(), 0.0, False, False, {}

    def _observation(self):
        type(self).count += 1
        return self.count % 1000


def test_an_environment_that_does_not_repeat_itself_has_no_counterfactual():
    env = make_env(Unrepeatable)
    policy = make_policy(env_id=Unrepeatable)
    episode = play(policy, env, 0, 10, True)
    settings = {"seed": 0, "max_steps": 10, "deterministic": True, "watch": lambda env: None}
    assert play_counterfactual(policy, env, episode, Forgetting(5, 2), **settings) is None


def test_the_shipped_policy_takes_the_other_door_without_the_ball(tmp_path):
    from expire_span_rl.policies import load_policy

    env = make_env("Corridor-v0", min_length=100)
    (one, _) = show_in(load_policy(SHIPPED)[0], env, "Corridor-v0", "p", seed=3, episodes=2).episodes
    counterfactual = one.record["without"]
    assert (counterfactual["written"], counterfactual["step"], counterfactual["steps"]) == (0, 139, 140)
    assert (
        counterfactual["label"] == "without the blue ball of step 0"
        and counterfactual["outcome"] == "failure, return 0 in 140 steps"
    )
    assert counterfactual["actions"][:139] == one.record["actions"][:139]
    row = next(row for row in one.record["audit"]["memories"] if row["written"] == 0)
    assert counterfactual["actions"][139] == row["total_removed"]["action"] != one.record["actions"][139]
    assert counterfactual["probabilities"][139] == pytest.approx(row["total_removed"]["probabilities"], abs=2e-4)


@pytest.mark.parametrize(("seed", "is_longer"), [(4, True), (10, False)])
@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (NARROW, "dark")], ids=["1280-light", "390-dark"])
def test_both_episodes_are_shown_until_the_last_is_over(open_page, tmp_path, seed, is_longer, viewport, scheme):
    page, (record,) = make_page(tmp_path, GRU, "--seed", str(seed))
    counterfactual = record["without"]
    longer = counterfactual["steps"] > record["steps"]
    assert longer == is_longer
    one = open_page(page, "", viewport, scheme)
    step = record["story"]["step"]
    one.wait_for_step(step)
    note = one.page.inner_text("#without-note")
    assert note == f"{counterfactual['label'].capitalize()}: {record['action_names'][counterfactual['actions'][step]]}"
    assert one.page.inner_text("#with-note") == f"As it was: {record['action_names'][record['actions'][step]]}"
    assert (one.image("#world") != one.image("#other-world")).mean() < 0.02  # the same world, apart from the mark
    one.page.keyboard.press("ArrowLeft")
    one.wait_for_step(step - 1)
    assert one.page.inner_text("#without-note").endswith(f"the same until step {counterfactual['step']}")
    one.page.evaluate("page.choose(null)")
    one.page.keyboard.press("End")
    last, over = max(counterfactual["steps"], record["steps"]) - 1, counterfactual if not longer else record
    one.until(f"page.now() === {last} && !page.due")
    assert one.page.inner_text("#clock") == f"step {last} of {last}"
    assert one.page.evaluate("page.beyond") == last + 1 - record["steps"]
    notes = one.page.inner_text("#with-note"), one.page.inner_text("#without-note")
    assert notes[not longer].endswith(f": over, {over['outcome']}")
    assert notes[longer].endswith(f"the end: {(counterfactual if longer else record)['outcome']}")
    env = make_env("Portal-v0", render_mode="rgb_array")
    env.reset(seed=seed)
    for action in counterfactual["actions"][:-1]:
        env.step(action)
    np.testing.assert_array_equal(one.image("#other-world"), env.render())
    one.page.click("#compare")
    one.wait_for_step(record["steps"] - 1)
    assert not one.page.is_visible("#other") and one.page.evaluate("page.beyond") == 0
    assert counterfactual["label"] in one.page.inner_text("#compare")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert one.troubles == []
