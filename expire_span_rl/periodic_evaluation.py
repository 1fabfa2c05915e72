"""Evaluations during a training. Every `--eval-every` steps, and at its end, the policy plays episodes with its most
likely actions. No training has these, nor another evaluation of the run, nor evaluate.py. Their metrics join the row of
the update, under Stable-Baselines3's names. The run then keeps a policy that met the target both in training and in an
evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from expire_span_rl.building import Run
from expire_span_rl.checks import SEED_BITS
from expire_span_rl.envs import EnvError, EnvironmentFailed, longest_episode
from expire_span_rl.evaluation import EndlessEpisode, Protocol, evaluate_in, vector_env
from expire_span_rl.settings import MAX_STEPS

NUM_ENVS = 100
EVALUATION_SEEDS = 2**SEED_BITS
"""Seeds of evaluations on the way begin here, beyond those that evaluate.py takes. The kept policy is chosen by these
episodes, so that it would do well in them by luck too."""


class PeriodicEvaluation:
    """Evaluates the policy of a run when it is due. It draws no random numbers, so the training is the same without."""

    def __init__(self, run: Run, say: Callable[[str], None]):
        """say: takes messages, in lines."""
        self._run = run
        self._say = say
        self._every = run.settings.run.eval_every
        self._reported_endless = False
        self.was_stopped = False
        """Whether the latest evaluation was given up, since the training was asked to stop."""
        run.trainer.keeps_evaluated = bool(self._every)

    @property
    def is_due(self) -> bool:
        """Whether there is an evaluation after the latest update."""
        trainer = self._run.trainer
        before = trainer.timesteps - trainer.rollout_size
        crosses = self._every and trainer.timesteps // self._every > before // self._every
        return bool(trainer.timesteps and self._every and (trainer.done or crosses))

    def metrics(self) -> dict[str, float]:
        """The metrics of an evaluation that is due after this update, as far as they are defined: `eval/mean_reward`,
        `eval/mean_ep_length`, `eval/success_rate` and `eval/live_mean` (live memories per layer).

        Empty if no evaluation is due, or if the training was asked to stop in the middle of one: `was_stopped`."""
        self.was_stopped = False
        if not self.is_due:
            return {}
        try:
            return self._evaluate()
        except _Stopped:
            self.was_stopped = True
            return {}

    def _evaluate(self) -> dict[str, float]:
        """The metrics of an evaluation; empty if an episode of it does not end, which is known after `MAX_STEPS` steps
        or, where that is more, the environment's longest episode. Raises EnvironmentFailed."""
        run = self._run
        episodes = run.settings.run.n_eval_episodes
        kwargs = {**run.env_kwargs, "env_timeout": run.settings.run.env_timeout}
        try:
            with contextlib.closing(vector_env(run.env_id, min(NUM_ENVS, episodes), kwargs)) as env:
                seed = EVALUATION_SEEDS + run.trainer.updates  # of the checkpoint, so a resumed run has the same
                protocol = Protocol(episodes, seed=seed, max_steps=max(MAX_STEPS, longest_episode(env) or 0))
                result = evaluate_in(run.policy, env, run.env_id, protocol, check=self._check_stop)
        except EnvError as error:  # they could be made before
            raise EnvironmentFailed(f"an evaluation's environments: {error}") from error
        except EndlessEpisode as error:
            if not self._reported_endless:  # a policy that is stuck now may get on later
                self._say(f"an evaluation failed: {error.problem}")
                self._reported_endless = True
            return {}
        metrics = {"eval/mean_reward": result["mean_return"], "eval/mean_ep_length": result["mean_episode_length"]}
        if result["success_rate"] is not None:
            metrics["eval/success_rate"] = result["success_rate"]
        run.trainer.keep_evaluated(result)
        live = result["live_memories_mean"]
        if live:
            metrics["eval/live_mean"] = sum(live) / len(live)
        figures = ", ".join(f"{name.removeprefix('eval/')} {value:.4g}" for name, value in metrics.items())
        self._say(f"evaluated after {run.trainer.timesteps:,} steps: {figures}")
        return metrics

    def _check_stop(self) -> None:
        """Raises _Stopped if the training is asked to stop."""
        if self._run.trainer.stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The training is asked to stop."""
