"""The worker processes of benchmarks: results, errors, and processes that die."""

from __future__ import annotations

import os

import pytest

from benchmarks.workers import in_processes


def test_results_come_from_processes_of_their_own():
    assert sorted(in_processes(abs, [-3, 1, -2], 2)) == [1, 2, 3]


def test_what_a_process_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "x"], 1))


@pytest.mark.parametrize("code, error", [(9, RuntimeError), (0, RuntimeError), (130, KeyboardInterrupt)])
def test_a_process_that_dies_raises_an_error(code, error):
    with pytest.raises(error):
        list(in_processes(os._exit, [code], 2))
