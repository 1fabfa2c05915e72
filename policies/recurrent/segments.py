"""A rollout is cut at its episode starts into sequences. A kernel without episodes (PyTorch's LSTM) can then run it.

T time steps, B environments, F final observations, D width, N sequences. A *segment* is the part of one environment's
steps between two episode starts or ends of the rollout. Sequences of similar length are padded to the same length and
run together.

A final observation is one more input, which no other step sees. It is appended to its segment if the segment ends just
before it, which is so in every rollout. Otherwise it gets a sequence of its own, which repeats the steps before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CALL_COST = 130  # of a kernel call without its steps, in steps of one row (0.2 ms, measured on a CPU)
MAX_STEPS = 8192  # of all rows in a call: beyond it a step takes twice as long (measured on a CPU)


@dataclass(frozen=True)
class Batch:
    """n sequences of at most m steps, padded to the same length."""

    source: Tensor  # int64 [m,n] index of each input in x [T*B,D] followed by final_x [F,D]; 0 for padding
    row: Tensor  # int64 [n] the environment
    continues: Tensor  # bool [n] whether the sequence begins with the memory's state; else with an empty one


@dataclass(frozen=True)
class Segments:
    """The batches, and where the output of each input is."""

    batches: tuple[Batch, ...]
    place: Tensor  # int64 [T*B+F] index of each input's output in the concatenated outputs, m*n of each batch


def cut_segments(episode_start: Tensor, final_at: tuple[Tensor, Tensor]) -> Segments:
    """The segments of a rollout: episode_start [T,B] bool, final_at (t, b) int64 [F] each."""
    # The segments, in an order in which those of an environment follow one another.
    steps, batch = episode_start.shape
    begins = episode_start.T.clone()  # [B,T]
    begins[:, 0] = True
    row, begin = begins.nonzero(as_tuple=True)
    flat_begin = row * steps + begin
    length = torch.diff(flat_begin, append=flat_begin.new_tensor([batch * steps]))
    continues = (begin == 0) & ~episode_start[0, row]
    # The segment of each final observation, and how many steps of it came before.
    final_t, final_b = final_at
    segment = begins.flatten().cumsum(0)[final_b * steps + final_t] - 1
    prefix = final_t - begin[segment] + 1
    numbers = torch.arange(len(final_t), device=row.device)
    final = torch.full_like(row, -1)  # by segment: the final observation appended to it
    at_end = prefix == length[segment]
    final[segment[at_end]] = numbers[at_end]
    separate = torch.ones_like(at_end)
    separate[final[final >= 0]] = False
    # The others repeat the steps of their segments. The outputs of these steps come from the segments themselves.
    segment = segment[separate]
    sequences = _Sequences(
        row=torch.cat([row, row[segment]]),
        begin=torch.cat([begin, begin[segment]]),
        length=torch.cat([length, prefix[separate]]),
        final=torch.cat([final, numbers[separate]]),
        continues=torch.cat([continues, continues[segment]]),
        repeats=torch.arange(len(row) + len(segment), device=row.device) >= len(row),
    )
    return _make_batches(sequences, steps * batch, batch, len(final_t))


@dataclass(frozen=True)
class _Sequences:
    """[N] each."""

    row: Tensor
    begin: Tensor
    length: Tensor  # steps, the final observation not counted
    final: Tensor  # number of the final observation after them, -1 for none
    continues: Tensor
    repeats: Tensor  # bool: only the final observation's output is used


def _make_batches(sequences: _Sequences, num_steps: int, batch: int, num_finals: int) -> Segments:
    """Batches of sequences of similar length. num_steps: T*B, where the final observations begin; batch: B."""
    total = sequences.length + (sequences.final >= 0)
    place = total.new_zeros(num_steps + num_finals)
    batches = []
    offset = 0
    order = total.argsort(descending=True, stable=True)
    for indices in order.split(_sizes(total[order].tolist())):
        length = sequences.length[indices]
        final = sequences.final[indices]
        row = sequences.row[indices]
        position = torch.arange(int(total[indices[0]]), device=total.device)[:, None]  # [m,1]
        is_step = position < length
        is_final = (position == length) & (final >= 0)
        step = (sequences.begin[indices] + position) * batch + row
        source = torch.where(is_step, step, torch.where(is_final, num_steps + final, 0))
        is_output = (is_step & ~sequences.repeats[indices]) | is_final
        place[source[is_output]] = offset + is_output.flatten().nonzero().squeeze(1)
        batches.append(Batch(source, row, sequences.continues[indices]))
        offset += source.numel()
    return Segments(tuple(batches), place)


def _sizes(lengths: list[int]) -> list[int]:
    """The number of sequences in each batch. lengths: of the sequences, longest first.

    A batch ends where its padding would cost more than another call, or where it would exceed MAX_STEPS.
    """
    sizes = []
    longest = 0
    padding = 0
    for length in lengths:
        padding += longest - length
        if not sizes or padding > CALL_COST or (sizes[-1] + 1) * longest > max(MAX_STEPS, longest):
            sizes.append(0)
            longest = length
            padding = 0
        sizes[-1] += 1
    return sizes
