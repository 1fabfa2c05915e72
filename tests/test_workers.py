"""Where benchmarks train, in worker processes or on a Ray cluster: results, errors, and processes that die."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from script_cases import call

from benchmarks import tasks
from benchmarks.comparison_cells import Cell, finish_cell
from benchmarks.workers import in_processes, on_ray
from expire_span_rl.settings import resolve


def test_results_come_from_processes_of_their_own():
    assert sorted(in_processes(abs, [-3, 1, -2], 2)) == [1, 2, 3]


def test_what_a_process_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        list(in_processes(int, ["1", "x"], 1))


@pytest.mark.parametrize("code, error", [(9, RuntimeError), (0, RuntimeError), (130, KeyboardInterrupt)])
def test_a_process_that_dies_raises_an_error(code, error):
    with pytest.raises(error):
        list(in_processes(os._exit, [code], 2))


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two machines with one CPU each."""
    pytest.importorskip("expire_span_rl.agents.ray_cluster")  # before ray, whose workers would be nice otherwise
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster.address
    cluster.shutdown()


def test_results_and_errors_come_from_a_cluster(address, in_folder):
    assert sorted(on_ray(abs, [-3, 1, -2], address)) == [1, 2, 3]
    assert list(on_ray(os.path.abspath, ["."], address)) == [str(Path.cwd())]
    with pytest.raises(ValueError, match="^invalid literal"):
        list(on_ray(int, ["1", "x"], address))
    with pytest.raises(RuntimeError, match="^a training on the cluster was ended from outside"):
        list(on_ray(os._exit, [9], address))


def test_a_folder_that_a_machine_does_not_have_is_named():
    ray_cluster = pytest.importorskip("expire_span_rl.agents.ray_cluster")
    with pytest.raises(ValueError, match=f"^--ray-address: expected the folder /none on every .*{os.uname().nodename}"):
        ray_cluster._call_in("/none", abs, -1)


def test_a_table_of_tasks_is_made_on_a_cluster(address, in_folder, monkeypatch):
    """With the same figures as on this machine."""
    flags = ["--tasks", "CartPole-v1", "Corridor-v0", "--kinds", "lstm", "none", "--seeds", "1", "--eval-episodes", "8"]
    flags += ["--num-envs", "8", "--num-steps", "16", "--num-minibatches", "2", "--total-timesteps", "256"]
    assert call(tasks, [*flags, "--out", "cluster", "--ray-address", address], monkeypatch) == 0
    assert call(tasks, [*flags, "--out", "here", "--jobs", "1"], monkeypatch) == 0

    def figures(file: Path) -> list:
        cell = json.loads(file.read_text())
        return [cell["config"], *(cell["figures"][name] for name in ("success", "return", "live_mean"))]

    cells = sorted(file.relative_to("here") for file in Path("here").glob("*/cells/*.json"))
    assert len(cells) == 4
    for cell in cells:
        assert figures("cluster" / cell) == figures("here" / cell)


def test_trainings_on_a_cluster_are_interrupted_with_a_checkpoint(address, in_folder):
    """When another one fails, or the benchmark ends."""
    short = {"num_envs": 8, "num_steps": 16, "num_minibatches": 2, "progress_bar": False}
    protocol = {"eval_episodes": 2, "eval_stochastic": True}
    work = [
        (
            Cell("none", None, seed),
            resolve("none", total_timesteps=steps, seed=seed, run_dir=f"run-{seed}", **short),
            f"{seed}.json",
            protocol,
        )
        for seed, steps in ((1, 2_000), (2, 100_000_000))
    ]
    results = on_ray(finish_cell, work, address)
    assert next(results)["seed"] == 1
    results.close()
    assert Path("1.json").exists() and not Path("2.json").exists()
    assert Path("run-2/checkpoint.safetensors").exists()
