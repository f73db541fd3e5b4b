"""CUDA graphs: many small kernels, recorded once and replayed as one launch."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class _Record(NamedTuple):
    inputs: list[Tensor]
    graph: torch.cuda.CUDAGraph
    output: Tensor


class Graphed:
    """A function of tensors that is replayed on a GPU; on the CPU it is called as it is.

    It is recorded once for each set of shapes. Whatever else it reads, such as weights, must stay
    where it is: values may change, storage may not. No gradient passes through it.
    """

    def __init__(self, function: Callable[..., Tensor]):
        self.function, self.records = function, {}

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Tensor:
        if not tensors[0].is_cuda:
            return self.function(*tensors)
        shapes = tuple(tensor.shape for tensor in tensors)
        if shapes not in self.records:
            self.records[shapes] = self._record(tensors)
        record = self.records[shapes]
        for kept, given in zip(record.inputs, tensors, strict=True):
            kept.copy_(given)
        record.graph.replay()
        return record.output.clone()

    def _record(self, tensors: tuple[Tensor, ...]) -> _Record:
        inputs = [tensor.clone() for tensor in tensors]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # the first call allocates workspaces: that is no part
            self.function(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.function(*inputs)
        return _Record(inputs, graph, output)
