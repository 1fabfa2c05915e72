"""The constraint on the loss, on scripted sequences of losses."""

from __future__ import annotations

import json

import pytest

from expire_span_rl.agents import ForgettingConfig, ForgettingController
from expire_span_rl.agents.loss_constraint import BEST_DRIFT
from expire_span_rl.agents.score_record import Score


def controlled(losses, live: float = 100.0, **settings) -> tuple[ForgettingController, list[float]]:
    """A controller with a loss to hold, and its pressure after each block of these losses."""
    controller = ForgettingController(ForgettingConfig(loss_tolerance=0.02, pressure_rise=0.25, **settings))
    pressures = []
    for bits in losses:
        controller.observe_bits(bits)
        pressures.append(controller.update(Score(float("nan"), 0, False), live, 0))
    return controller, pressures


def test_with_a_loss_to_hold_forgetting_begins_once_it_falls_slowly():
    falling = [5.0 - 0.01 * i for i in range(300)]
    controller, pressures = controlled([*falling, *[2.0] * 300])
    assert pressures[:500] == [0.0] * 500  # the average still falls up to block 500
    assert pressures[599:] == [0.25] and controller.learned
    assert controlled([3.0] * 600)[1] == [0.0] * 600  # nothing was learned
    assert controlled([*falling, *[2.0] * 400], forgetting=False)[1] == [0.0] * 700
    assert controlled([*falling, *[2.0] * 400], memory_budget=100)[1] == [0.0] * 700


def test_answers_that_become_perfect_are_learned():
    """Their bits fall by half in every 50 blocks, without end. Below a hundredth of the first average they may rise
    again: they count as that hundredth."""
    controller, pressures = controlled([4.0 * 0.5 ** (i / 50) for i in range(2000)])
    assert controller.learned and pressures[500] > 0 and pressures[-1] == 1.0
    controller.observe_bits(0.01)
    assert controller.loss is not None and controller.loss.bits > 100 * controller.loss.best
    assert controller.loss.violation <= 0


def test_a_loss_above_its_best_lengthens_spans_and_what_cannot_be_reached_again_is_given_up():
    controller, pressures = controlled([*[4.0] * 100, *[2.0] * 500])
    assert pressures[-4:] == [1.0] * 4 and controller.holds(Score(-2.0, 0, False))
    assert controller.target(False) == pytest.approx(-2.04, rel=1e-3)
    for _ in range(500):
        controller.observe_bits(2.06)
    assert controller.loss is not None and controller.loss.bits == pytest.approx(2.06, rel=1e-3)
    excess = 2.06 / (2.0 * (1 + BEST_DRIFT) ** 500) - 1.02
    assert controller.update(Score(0, 0, False), 100, 0) == pytest.approx(-excess / 0.02, rel=0.05)
    assert not controller.holds(Score(0, 0, False))
    for _ in range(600):
        controller.observe_bits(2.06)
    assert controller.update(Score(0, 0, False), 100, 0) == 0.25  # the best has come to 2.06 / 1.02


def test_the_state_of_a_loss_to_hold_is_saved():
    controller, _ = controlled([*[4.0] * 100, *[2.0] * 250, None])
    again, _ = controlled([])
    again.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert again.state_dict() == controller.state_dict() and again.loss.blocks == 350
    with pytest.raises(TypeError, match="^best: expected a number or nothing, got 'low'$"):
        again.load_state_dict({**controller.state_dict(), "loss": {**controller.loss.state_dict(), "best": "low"}})
