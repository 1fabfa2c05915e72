"""Evaluations during a training: every `--eval-every` steps, and at its end, the policy plays fresh episodes with its
most likely actions. Their metrics join the row of the update, under Stable-Baselines3's names, and the policy that the
run keeps is one that passed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from expire_span_rl.building import Run
from expire_span_rl.evaluation import EndlessEpisode, evaluate
from expire_span_rl.settings import MAX_STEPS

NUM_ENVS = 100


class PeriodicEvaluation:
    """Evaluates the policy of a run when it is due. It draws no random numbers, so the training is the same without."""

    def __init__(self, run: Run, say: Callable[[str], None]):
        """say: gets what happens, in lines."""
        self._run, self._say = run, say
        self._every, self._told = run.config.get("eval_every", 0), False
        run.trainer.keeps_evaluated = bool(self._every)

    def metrics(self) -> dict[str, float]:
        """`eval/mean_reward`, `eval/mean_ep_length`, `eval/success_rate` and `eval/live_mean` (live memories per layer),
        as far as there are such; empty if no evaluation is due after this update, or if one was interrupted because the
        training is asked to stop."""
        trainer = self._run.trainer
        before = trainer.timesteps - trainer.rollout_size
        due = self._every and (trainer.done or trainer.timesteps // self._every > before // self._every)
        if not due:
            return {}
        with contextlib.suppress(_Stopped):
            return self._evaluated()
        return {}

    def _evaluated(self) -> dict[str, float]:
        run = self._run
        episodes = run.config["n_eval_episodes"]
        try:
            found = evaluate(
                run.policy,
                run.info["env"],
                run.env_kwargs,
                episodes,
                min(NUM_ENVS, episodes),
                max_steps=MAX_STEPS,
                check=self._check,
            )
        except EndlessEpisode as error:
            if not self._told:  # a policy that is stuck now may get on later
                self._say(f"an evaluation failed: {error}")
                self._told = True
            return {}
        metrics = {"eval/mean_reward": found["mean_return"], "eval/mean_ep_length": found["mean_episode_length"]}
        if found["success_rate"] is not None:
            metrics["eval/success_rate"] = found["success_rate"]
        run.trainer.keep_evaluated(metrics.get("eval/success_rate", metrics["eval/mean_reward"]))
        live = found["live_memories_mean"]
        if live:
            metrics["eval/live_mean"] = sum(live) / len(live)
        return metrics

    def _check(self) -> None:
        if self._run.trainer.stop.is_set():
            raise _Stopped


class _Stopped(Exception):
    """The training is asked to stop."""
