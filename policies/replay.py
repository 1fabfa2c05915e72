"""A computation that is captured once and launched as a whole. On a GPU it is a CUDA graph: a step then costs one
launch instead of some two hundred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # calls before a capture, in which libraries allocate their permanent buffers


class Replay:
    """Calls a function of tensors whose shapes never change. Inputs and outputs lie in buffers of the Replay's own: the
    next call overwrites the outputs of the last one.

    On the CPU the function itself is called each time, with the same buffers. Tests therefore need no GPU.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Mapping[str, Tensor], state: Sequence[Tensor]
    ):
        """function: takes tensors by name and returns tensors; it must never ask the device for a number; inputs: of
        the first call; state: the tensors that the function changes, which are restored after the capture."""
        self._function = function
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._outputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        if next(iter(self._inputs.values())).is_cuda:
            self._capture(state)

    def _capture(self, state: Sequence[Tensor]) -> None:
        saved_state = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._function(**self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = list(self._function(**self._inputs))
        for tensor, value in zip(state, saved_state, strict=True):
            tensor.copy_(value)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Raises ValueError, one line, for an input of another shape."""
        for name, tensor in inputs.items():
            buffer = self._inputs[name]
            if tensor.shape != buffer.shape:
                raise ValueError(f"{name}: expected a tensor {list(buffer.shape)}, as before, got {list(tensor.shape)}")
            buffer.copy_(tensor, non_blocking=True)
        if self._graph is not None:
            self._graph.replay()
            return self._outputs
        outputs = list(self._function(**self._inputs))
        if not self._outputs:
            self._outputs = [output.clone() for output in outputs]
        for buffer, output in zip(self._outputs, outputs, strict=True):
            buffer.copy_(output)
        return self._outputs
