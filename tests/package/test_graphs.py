"""``fastssl.graphs`` where there is no GPU: refusals, and what a call does before it replays. The rest is in ``tests/gpu``."""

import pytest
import torch
from torch import nn

from fastssl.functional import nt_xent
from fastssl.graphs import GraphedStep, capture_step, leaves
from fastssl.loss.parts.row_stats import RowStats


@pytest.mark.parametrize(
    "arguments, options, error, words",
    [
        ((nt_xent, torch.ones(2, 3)), {}, ValueError, r"inputs\[0\] must be on a GPU, got cpu"),
        ((nt_xent, torch.ones(2, 3, device="meta")), {}, ValueError, r"inputs\[0\] must be on a GPU, got meta"),
        ((nt_xent, 0.5), {}, TypeError, r"inputs\[0\] must be a tensor; give what does not change by functools.partial, got float"),
        (("nt_xent",), {}, TypeError, "step must be a function, got str"),
        ((nt_xent,), {"warmup": 0}, ValueError, r"warmup must be in \[1, "),
        ((nt_xent,), {"warmup": 1.5}, TypeError, "warmup must be a whole number, got float"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_words(arguments, options, error, words):
    with pytest.raises(error, match=f"^capture_step: {words}"):
        capture_step(*arguments, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    with pytest.raises(RuntimeError, match="capture_step: there is no GPU here; on a CPU call the step itself"):
        capture_step(lambda: None)


class Replays:
    """Stands for a graph of ``outputs <- sum of all inputs``."""

    def __init__(self, inputs, outputs):
        self.inputs, self.outputs, self.count = inputs, outputs, 0

    def replay(self):
        self.count += 1
        self.outputs.copy_(sum(t.detach().sum() for t in self.inputs))


@pytest.fixture
def graphed():
    inputs = (torch.zeros(2, 3, requires_grad=True), torch.zeros(4, dtype=torch.int64))
    outputs = torch.zeros(())
    return GraphedStep(Replays(inputs, outputs), inputs, outputs)


def test_inputs_are_copied_then_the_graph_replayed(graphed):
    first, second = torch.ones(3, 2).t(), torch.arange(4)
    out = graphed(first, second)
    assert out is graphed.outputs and out.item() == 12 and graphed.graph.count == 1
    first.fill_(5.0)
    assert torch.equal(graphed.inputs[0], torch.ones(2, 3)) and graphed.inputs[0].requires_grad
    place = graphed.inputs[0]
    version = place._version
    assert graphed(place, second).item() == 12 and place._version == version  # its own input is not copied


@pytest.mark.parametrize(
    "inputs, error, words",
    [
        ((torch.ones(2, 3),), TypeError, "the graph was captured with 2 inputs, got 1"),
        ((torch.ones(3, 2), torch.arange(4)), ValueError, r"inputs\[0\] must have shape \(2, 3\), .* got \(3, 2\)"),
        ((torch.ones(2, 3), torch.arange(1)), ValueError, r"inputs\[1\] must have shape \(4,\), .* got \(1,\)"),
        ((torch.ones(2, 3), torch.ones(4)), TypeError, r"inputs\[1\] must have dtype torch.int64, .* got torch.float32"),
        ((torch.ones(2, 3, device="meta"), torch.arange(4)), ValueError, r"inputs\[0\] must be on cpu, .* got meta"),
        ((torch.ones(2, 3).to_sparse(), torch.arange(4)), TypeError, r"inputs\[0\] must be a dense tensor, got torch.sparse_coo"),
        ((torch.ones(2, 3), [0, 1, 2, 3]), TypeError, r"inputs\[1\] must be a tensor, got list"),
    ],
)
def test_a_replay_refuses_other_inputs_and_changes_nothing(graphed, inputs, error, words):
    with pytest.raises(error, match=f"^capture_step: {words}"):
        graphed(*inputs)
    assert graphed.graph.count == 0 and not any(t.any() for t in graphed.inputs)


def test_results_may_be_nested_but_hold_tensors_alone():
    stats = RowStats(*map(torch.tensor, range(6)))
    found, _ = leaves({"loss": torch.ones(()), "stats": stats, "rest": [None]})
    assert len([t for t in found if t is not None]) == 7
    for wrong, kind in ((0.5, "float"), ({"loss": "a"}, "str"), ((torch.ones(()), nn.Identity()), "Identity")):
        with pytest.raises(TypeError, match=f"^capture_step: step must return tensors, .* got {kind}"):
            leaves(wrong)
