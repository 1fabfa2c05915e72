"""A computation that is launched as a whole: on a GPU a CUDA graph, captured once, so that a step costs one launch
instead of some two hundred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

WARM_UP = 3  # calls before a capture, in which libraries make what they keep


class Replay:
    """Calls a function of tensors whose shapes never change. It reads and writes tensors of its own, which the caller
    does not keep: what it returns is overwritten by the next call.

    On the CPU the function is called each time: the same buffers, without a graph, so that tests need no GPU.
    """

    def __init__(
        self, function: Callable[..., Sequence[Tensor]], inputs: Mapping[str, Tensor], state: Sequence[Tensor]
    ):
        """function: of tensors by name, returns tensors, and must never ask the device for a number; inputs: the first
        ones; state: the tensors that it changes and that a call before the capture must leave as they were."""
        self._function = function
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._outputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        if next(iter(self._inputs.values())).is_cuda:
            self._capture(state)

    def _capture(self, state: Sequence[Tensor]) -> None:
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self._function(**self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = list(self._function(**self._inputs))
        for tensor, was in zip(state, before, strict=True):
            tensor.copy_(was)

    def __call__(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Raises ValueError, one line, for an input of another shape."""
        for name, tensor in inputs.items():
            own = self._inputs[name]
            if tensor.shape != own.shape:
                raise ValueError(f"{name}: expected a tensor {list(own.shape)}, as before, got {list(tensor.shape)}")
            own.copy_(tensor, non_blocking=True)
        if self._graph is not None:
            self._graph.replay()
            return self._outputs
        outputs = list(self._function(**self._inputs))
        if not self._outputs:
            self._outputs = [output.clone() for output in outputs]
        for own, output in zip(self._outputs, outputs, strict=True):
            own.copy_(output)
        return self._outputs
