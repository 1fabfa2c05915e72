"""What agents act in. `make_env` and `make_vec_env` give environments wrapped as a policy expects."""

from expire_span_rl.envs.errors import EnvError
from expire_span_rl.envs.registration import env_ids, make_env, make_vec_env, training_kwargs, vec_env_maker
from expire_span_rl.envs.rendering import render_observation
from expire_span_rl.envs.wraps import parse_wraps

__all__ = [
    "EnvError",
    "env_ids",
    "make_env",
    "make_vec_env",
    "parse_wraps",
    "render_observation",
    "training_kwargs",
    "vec_env_maker",
]
