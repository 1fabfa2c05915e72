"""A rollout cut at episode starts into sequences, so that a kernel that knows no episodes (PyTorch's LSTM) can run it.

T time steps, B environments, F final observations, D width. A *segment* is what one environment lived through between two
episode starts or ends of the rollout. Sequences of like length are padded to one another and run together.

A final observation is one more input, which no other step sees. It is appended to its segment where the segment ends
just before it, as it does in every rollout. Anywhere else it gets a sequence of its own that repeats the steps before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CALL = 130  # what a kernel call costs beside its steps, in steps of one row (0.2 ms, measured on a CPU)
LARGEST = 8192  # steps of all rows in a call: beyond this many a step takes twice as long (measured on a CPU)


@dataclass(frozen=True)
class Batch:
    """Sequences that are padded together: n of them, at most m long."""

    source: Tensor  # int64 [m,n] where each input is in x [T*B,D] followed by final_x [F,D]; 0 where it is padding
    row: Tensor  # int64 [n] the environment
    continues: Tensor  # bool [n] whether the sequence goes on from the memory, and not from an empty state


@dataclass(frozen=True)
class Segments:
    """The batches, and where to find the result of each input: an index into the concatenated outputs of all batches, [m*n]
    of each."""

    batches: tuple[Batch, ...]
    place: Tensor  # int64 [T*B+F]


def cut_segments(episode_start: Tensor, final_at: tuple[Tensor, Tensor]) -> Segments:
    """The segments of a rollout: episode_start [T,B] bool, final_at (t, b) int64 [F] each."""
    steps, batch = episode_start.shape
    begins = episode_start.T.clone()  # [B,T]: in this order the segments of an environment follow one another
    begins[:, 0] = True
    row, begin = begins.nonzero(as_tuple=True)
    flat_begin = row * steps + begin
    length = torch.diff(flat_begin, append=flat_begin.new_tensor([batch * steps]))
    continues = (begin == 0) & ~episode_start[0, row]
    # Final observations: the segment of each, and how many steps of it came before.
    final_t, final_b = final_at
    segment = begins.flatten().cumsum(0)[final_b * steps + final_t] - 1
    prefix = final_t - begin[segment] + 1
    numbers = torch.arange(len(final_t), device=row.device)
    final = torch.full_like(row, -1)  # by segment: the final observation appended to it
    last = prefix == length[segment]
    final[segment[last]] = numbers[last]
    separate = torch.ones_like(last)
    separate[final[final >= 0]] = False
    # The others repeat the steps of their segments, whose outputs are taken from the segments themselves.
    segment = segment[separate]
    sequences = _Sequences(
        row=torch.cat([row, row[segment]]),
        begin=torch.cat([begin, begin[segment]]),
        length=torch.cat([length, prefix[separate]]),
        final=torch.cat([final, numbers[separate]]),
        continues=torch.cat([continues, continues[segment]]),
        repeats=torch.arange(len(row) + len(segment), device=row.device) >= len(row),
    )
    return _batched(sequences, steps * batch, batch, len(final_t))


@dataclass(frozen=True)
class _Sequences:
    """[N] each."""

    row: Tensor
    begin: Tensor
    length: Tensor  # steps, the final observation not counted
    final: Tensor  # the final observation that comes after them, -1 for none
    continues: Tensor
    repeats: Tensor  # bool: only the final observation's output is of use


def _batched(sequences: _Sequences, finals_at: int, batch: int, num_finals: int) -> Segments:
    """Sequences of like length together. finals_at: where the final observations begin, T*B."""
    total = sequences.length + (sequences.final >= 0)
    place = total.new_zeros(finals_at + num_finals)
    batches, offset = [], 0
    order = total.argsort(descending=True, stable=True)
    for indices in order.split(_sizes(total[order].tolist())):
        length, final, row = sequences.length[indices], sequences.final[indices], sequences.row[indices]
        position = torch.arange(int(total[indices[0]]), device=total.device)[:, None]  # [m,1]
        is_step = position < length
        is_final = (position == length) & (final >= 0)
        step = (sequences.begin[indices] + position) * batch + row
        source = torch.where(is_step, step, torch.where(is_final, finals_at + final, 0))
        result = (is_step & ~sequences.repeats[indices]) | is_final
        place[source[result]] = offset + result.flatten().nonzero().squeeze(1)
        batches.append(Batch(source, row, sequences.continues[indices]))
        offset += source.numel()
    return Segments(tuple(batches), place)


def _sizes(lengths: list[int]) -> list[int]:
    """How many sequences of these lengths, longest first, go into each batch. A batch ends where its padding has come to
    cost as much as another call, and where it is as large as a call may be."""
    sizes, longest, padding = [], 0, 0
    for length in lengths:
        padding += longest - length
        if not sizes or padding > CALL or (sizes[-1] + 1) * longest > max(LARGEST, longest):
            sizes.append(0)
            longest, padding = length, 0
        sizes[-1] += 1
    return sizes
