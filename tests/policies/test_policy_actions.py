"""Action spaces: samples, their probabilities, and the environment's actions. N numbers of an action."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from expire_span_rl.policies.actions import ACTIONS, action_spec, make_actions
from expire_span_rl.spaces import no_action, previous_action, previous_action_space

FLOAT32, FLOAT64 = np.finfo(np.float32), np.finfo(np.float64)
SPACES = {
    "discrete": spaces.Discrete(4),
    "discrete from -1": spaces.Discrete(3, start=-1),
    "multi_discrete": spaces.MultiDiscrete([3, 2, 4]),
    "multi_discrete matrix": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[1, 0], [0, -2]]),
    "multi_binary": spaces.MultiBinary(3),
    "multi_binary matrix": spaces.MultiBinary([2, 2]),
    "box": spaces.Box(-2.0, 2.0, (1,), np.float32),
    "box of other bounds": spaces.Box(np.array([0.0, -3.0]), np.array([10.0, 1.0]), dtype=np.float64),
    "box, one side": spaces.Box(np.array([0.0, -np.inf]), np.array([np.inf, 5.0]), dtype=np.float32),
    "box, no bounds": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "box, float32's bounds": spaces.Box(FLOAT32.min, FLOAT32.max, (2,), np.float32),
    "box, float64's bounds": spaces.Box(FLOAT64.min, FLOAT64.max, (2,), np.float64),
    "box, a far side": spaces.Box(np.array([0.0, -1e29]), np.array([FLOAT64.max, np.inf]), dtype=np.float64),
}
WHOLE = [name for name in SPACES if not name.startswith("box")]


@pytest.mark.parametrize("name", ["box, float32's bounds", "box, float64's bounds"])
def test_bounds_at_the_end_of_a_type_are_none(name):
    """The numbers are the environment's own, as without bounds."""
    actions, _ = rebuilt(SPACES[name])
    assert torch.isinf(actions.low).all() and torch.isinf(actions.high).all()
    assert actions.spec["low"] == actions.spec["high"] == [None, None]
    assert actions.to_env(torch.tensor([[0.5, -3.0]])).tolist() == [[0.5, -3.0]]
    low, high = SPACES[name].low.tolist(), SPACES[name].high.tolist()
    with pytest.raises(ValueError, match=r"^actions: expected bounds up to 1e\+30, got farther ones, by which"):
        make_actions({**actions.spec, "low": low, "high": high})  # of a policy that was saved before
    one_side = make_actions({**actions.spec, "low": [None, None], "high": high})
    assert one_side.to_env(torch.tensor([[0.5, -3.0]])).tolist() == [[0.5, -3.0]]


def rebuilt(space: spaces.Space, batch: int = 5, seed: int = 0):
    """(actions of the space, random parameters [batch,P])."""
    actions = make_actions(action_spec(space))
    outputs = torch.randn(batch, actions.num_outputs, generator=torch.Generator().manual_seed(seed))
    return actions, actions.params(outputs)


def test_every_registered_space_is_here():
    assert {action_spec(space)["kind"] for space in SPACES.values()} == ACTIONS.keys()


@pytest.mark.parametrize("name", SPACES)
def test_what_is_drawn_is_in_the_space(name):
    actions, params = rebuilt(SPACES[name], batch=50)
    generator = torch.Generator().manual_seed(1)
    for canonical in (actions.sample(params, generator), actions.mode(params)):
        batch = actions.to_env(canonical)
        assert len(batch) == 50 and all(SPACES[name].contains(action) for action in batch), batch[:3]


@pytest.mark.parametrize("name", SPACES)
def test_canonical_actions_are_what_the_wrapper_tells_as_the_previous_one(name):
    """to_env and back: the environment's wrapper gives a policy's own action as the previous action."""
    space = SPACES[name]
    actions, params = rebuilt(space)
    canonical = actions.sample(params, torch.Generator().manual_seed(1))
    entry = previous_action(space, actions.to_env(canonical))
    np.testing.assert_allclose(entry, canonical.detach().numpy(), atol=1e-6)
    assert entry.dtype == previous_action_space(space).dtype
    assert previous_action_space(space).contains(entry[0])
    np.testing.assert_array_equal(actions.no_action(2), np.stack([no_action(space)] * 2))


@pytest.mark.parametrize("name", WHOLE)
def test_probabilities_of_all_actions_sum_to_one(name):
    actions, params = rebuilt(SPACES[name], batch=1)
    sizes = getattr(actions, "sizes", [actions.num_outputs])
    grid = torch.cartesian_prod(*[torch.arange(size) for size in sizes])
    log_p = actions.log_prob(params.expand(len(grid), -1), grid)
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert float(actions.entropy(params)) == pytest.approx(float(-(log_p.exp() * log_p).sum()), abs=1e-5)


@pytest.mark.parametrize("name", SPACES)
def test_the_mean_encoding_is_that_of_drawn_actions(name):
    """Within four standard errors of the mean over 20,000 draws. Its gradient is finite."""
    actions, params = rebuilt(SPACES[name], batch=3)
    params = params.detach().requires_grad_()
    mean = actions.mean_encoding(params)
    drawn = actions.sample(params.detach().expand(20_000, *params.shape), torch.Generator().manual_seed(1))
    encoded = actions.encode(drawn)  # [20000,3,F]
    error = encoded.std(0) / 20_000**0.5
    assert ((encoded.mean(0) - mean).abs() <= 4 * error + 1e-4).all()
    assert mean.shape == (3, actions.num_features)
    mean.square().sum().backward()
    assert torch.isfinite(params.grad).all()


@pytest.mark.parametrize("name", WHOLE)
def test_the_log_barrier_is_the_divergence_from_the_uniform_distribution(name):
    """Against torch's KL divergence, summed over the numbers of an action; 0 where all actions are as likely."""
    actions, params = rebuilt(SPACES[name])
    sizes = getattr(actions, "sizes", [actions.num_outputs])
    expected = torch.zeros(len(params))
    for logits in params.split(sizes, -1):
        uniform = torch.distributions.Categorical(logits=torch.zeros_like(logits))
        expected -= torch.distributions.kl_divergence(uniform, torch.distributions.Categorical(logits=logits))
    torch.testing.assert_close(actions.log_barrier(params), expected)
    torch.testing.assert_close(actions.log_barrier(0 * params), 0 * expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("count", "pull"), [(4, 1 / 4), (7, 1 / 7), (27, 1 / 7)])
def test_an_action_among_many_is_pulled_as_one_of_seven(count, pull):
    """The gradient of an action's logit where its probability is about 1e-9. Where all actions are as likely the log
    barrier is 0 all the same. Forbidden actions do not count among the many."""
    actions, _ = rebuilt(spaces.Discrete(count))
    for forbidden in (0, count - 4):
        logits = torch.zeros(1, count, dtype=torch.float64)
        logits[:, count - forbidden :] = actions.forbidden
        assert actions.log_barrier(logits).item() == pytest.approx(0, abs=1e-6)
        logits[0, 0] = -20
        logits.requires_grad_()
        actions.log_barrier(logits).sum().backward()
        assert logits.grad[0, 0].item() == pytest.approx(pull if not forbidden else 1 / 4, abs=1e-6)


def test_the_log_barrier_pulls_where_entropy_does_not():
    """The gradient of an action's logit, where its probability is about 1e-9: 1/2 from the log barrier."""
    actions, _ = rebuilt(spaces.Discrete(2))
    slopes = {}
    for name in ("entropy", "log_barrier"):
        logits = torch.tensor([[20.0, 0.0]], dtype=torch.float64, requires_grad=True)
        getattr(actions, name)(logits).sum().backward()
        slopes[name] = logits.grad[0, 1].item()
    assert slopes["log_barrier"] == pytest.approx(0.5, abs=1e-6)
    assert 0 < slopes["entropy"] < 1e-6


def test_a_box_has_a_density_inside_and_a_mass_at_each_bound():
    """Against Monte Carlo and numerical integration, one number with bounds [-1, 1] canonically."""
    actions, _ = rebuilt(spaces.Box(-1, 1, (1,), np.float32))
    params = actions.params(torch.tensor([[0.7]])).detach()
    std = math.exp(-0.5)
    probability_below = float(torch.special.ndtr(torch.tensor((-1 - 0.7) / std)))
    probability_above = float(torch.special.ndtr(torch.tensor((0.7 - 1) / std)))
    for bound, mass in ((-1.0, probability_below), (1.0, probability_above)):
        assert float(actions.log_prob(params, torch.tensor([[bound]]))) == pytest.approx(math.log(mass), abs=1e-5)
    x = torch.linspace(-1, 1, 20_001)[1:-1, None]
    log_p = actions.log_prob(params.expand(len(x), -1), x)
    inside = float(torch.trapezoid(log_p.exp(), x[:, 0]))
    assert inside + probability_below + probability_above == pytest.approx(1, abs=1e-3)
    entropy = (
        -float(torch.trapezoid(log_p.exp() * log_p, x[:, 0]))
        - probability_below * math.log(probability_below)
        - probability_above * math.log(probability_above)
    )
    assert float(actions.entropy(params)) == pytest.approx(entropy, abs=1e-3)
    samples = actions.sample(params.expand(200_000, -1), torch.Generator().manual_seed(0))
    assert float((samples == 1).float().mean()) == pytest.approx(probability_above, abs=0.005)
    assert float((samples == -1).float().mean()) == pytest.approx(probability_below, abs=0.005)


def test_a_box_without_bounds_is_a_normal_distribution():
    actions, params = rebuilt(spaces.Box(-np.inf, np.inf, (3,), np.float32))
    mean, log_std = params.chunk(2, -1)
    normal = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    samples = actions.sample(params, torch.Generator().manual_seed(0))
    torch.testing.assert_close(actions.log_prob(params, samples), normal.log_prob(samples))
    torch.testing.assert_close(actions.entropy(params), normal.entropy())


@pytest.mark.parametrize("mean", [-50.0, -1.0, 0.0, 1.0, 50.0])
@pytest.mark.parametrize("low, high", [(-1, 1), (-1, np.inf), (-np.inf, 1), (-np.inf, np.inf)])
def test_gradients_of_a_box_are_finite_wherever_its_mean_is(low, high, mean):
    actions, _ = rebuilt(spaces.Box(low, high, (1,), np.float32))
    for action in (-1.0, 0.3, 1.0):
        outputs = torch.tensor([[mean]], requires_grad=True)
        params = actions.params(outputs)
        loss = actions.log_prob(params, torch.tensor([[action]])).sum() + actions.entropy(params).sum()
        loss = loss + actions.mean_encoding(params).sum()
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(outputs.grad).all(), (mean, action)


@pytest.mark.parametrize("name", WHOLE)
def test_what_a_mask_forbids_is_never_drawn_and_entropy_is_of_the_rest(name):
    space = SPACES[name]
    actions, params = rebuilt(space, batch=200)
    sizes = getattr(actions, "sizes", [actions.num_outputs])
    mask = torch.cat([torch.arange(size) != 0 for size in sizes])  # of each number the first value
    masked = actions.masked(params, mask.to(torch.int8))
    for canonical in (actions.sample(masked, torch.Generator().manual_seed(0)), actions.mode(masked)):
        assert (canonical > 0).all()
    forbidden = torch.zeros_like(canonical)
    assert (actions.log_prob(masked, forbidden) < -1e6).all()
    allowed_sizes = [size - 1 for size in sizes]
    flat = actions.masked(torch.zeros_like(params), mask)
    assert actions.entropy(flat)[0].item() == pytest.approx(sum(math.log(size) for size in allowed_sizes), abs=1e-5)
    assert actions.log_barrier(flat)[0].item() == pytest.approx(0, abs=1e-5)


def test_a_box_has_no_mask():
    actions, params = rebuilt(SPACES["box"])
    with pytest.raises(ValueError, match=r"^action mask: expected a space of whole numbers, a Box has no mask$"):
        actions.masked(params, torch.ones_like(params))


@pytest.mark.parametrize("name", SPACES)
def test_distance_is_a_total_variation(name):
    actions, params = rebuilt(SPACES[name])
    _, other_params = rebuilt(SPACES[name], seed=1)
    distance = actions.distance(params, other_params)
    torch.testing.assert_close(actions.distance(params, params), torch.zeros(5))
    assert ((distance > 0) & (distance <= 1)).all()
    if name == "discrete":
        apart = (torch.softmax(params, -1) - torch.softmax(other_params, -1)).abs().sum(-1) / 2
        torch.testing.assert_close(distance, apart)


@pytest.mark.parametrize("name", SPACES)
def test_every_number_that_is_shown_has_a_label(name):
    actions, params = rebuilt(SPACES[name])
    assert actions.marginals(params).shape == (5, len(actions.labels()))


@pytest.mark.parametrize(
    "space", [spaces.Text(4), spaces.Tuple((spaces.Discrete(2),)), spaces.Box(0, 4, (2,), np.int64)]
)
def test_another_space_is_refused_in_one_line(space):
    with pytest.raises(
        ValueError, match=r"^action space: expected Discrete, MultiDiscrete, MultiBinary or a Box of floats, "
    ):
        action_spec(space)
