"""The predictions for many GPUs: closed forms against the ring rank by rank, conservation of bytes, and the page made of them."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.scaling import __main__ as command
from benchmarks.scaling import events, page
from benchmarks.scaling.compute import Kernels, measured_scale
from benchmarks.scaling.links import HGX
from benchmarks.scaling.model import Machine, Problem, closed_ring, hidden_from, memory, predict, sent, step_seconds

MACHINE = Machine(Kernels.of("H100"))


def run(world, c, chunk, gradient=0.0):
    amounts = np.full(world, chunk), np.full(world, gradient) if gradient else None
    return events.run(HGX.hops(world), np.full((world, world), c), *amounts)


@pytest.mark.parametrize("world", (2, 3, 8, 9, 40))
def test_the_closed_form_is_what_a_ring_of_equal_batches_takes(world):
    slowest = min(HGX.hops(world), key=lambda hop: hop.bytes_per_s)
    for c in (1e-5, 1e-4, 3e-4, 1e-3):  # transfers of 4 MB take 12 or 87 us, with their gradients 3 times as long
        for gradient in (0.0, 8e6):
            ran, closed = run(world, c, 4e6, gradient), closed_ring(c, slowest, world, 4e6, gradient)
            assert ran.seconds == pytest.approx(closed.seconds, rel=1e-12)
            assert ran.busy == pytest.approx(closed.communication, rel=1e-12) and ran.compute == pytest.approx(world * c)


def by_definition(hops, compute, chunk, gradient):
    """When the last rank is done: each step of each rank asks for those that it waits for."""
    world = len(hops)

    @functools.cache
    def begins(rank, step):
        if step == 0:
            return 0.0
        computed = begins(rank, step - 1) + (compute[rank, (rank - step + 1) % world] if step <= world else 0.0)
        return max(computed, arrives(rank, step - 1), arrives((rank - 1) % world, step - 1))

    def arrives(rank, step):
        """When rank + 1 has what this rank sends in this step: its chunk, and the gradient of the one before."""
        amount = chunk[(rank - step) % world] if step < world - 1 else 0
        amount += gradient[(rank - step + 1) % world] if step else 0
        asked = max(begins(rank, step), begins((rank + 1) % world, step))
        return asked + hops[rank].seconds(amount) if amount else 0.0

    return max(begins(rank, world + bool(gradient.any())) for rank in range(world))


@pytest.mark.parametrize("world", (2, 5, 10))
def test_an_uneven_ring_takes_what_its_definition_says(world):
    random = np.random.default_rng(world)
    for gradient in (0 * random.integers(1, 2, world), random.integers(1, 9, world) * 1_000_000):
        chunk, compute = random.integers(1, 9, world) * 1_000_000, random.random((world, world)) * 3e-4
        ran = events.run(HGX.hops(world), compute, chunk, gradient if gradient.any() else None)
        assert ran.seconds == pytest.approx(by_definition(HGX.hops(world), compute, chunk, gradient), rel=1e-12)


def test_every_byte_that_is_sent_belongs_to_a_hop_of_a_chunk():
    random = np.random.default_rng(0)
    chunk, gradient = random.integers(1, 1000, 7), random.integers(1, 1000, 7)
    times = random.random((7, 7)) * 1e-3
    forward = events.run(HGX.hops(7), times, chunk)
    backward = events.run(HGX.hops(7), times, chunk, gradient)
    assert forward.sent.sum() == 6 * chunk.sum() and backward.sent.sum() == 6 * chunk.sum() + 7 * gradient.sum()
    # A rank passes on every chunk but that of the rank ahead, whose way ends here; the gradient of each, too.
    assert (forward.sent == chunk.sum() - np.roll(chunk, -1)).all()
    assert (backward.sent - forward.sent == gradient.sum()).all()
    assert forward.seconds >= times.sum(1).max() and backward.seconds > forward.seconds


def test_the_formula_of_bytes_counts_what_the_ring_sends():
    for problem in (Problem(3000, 512, 16), Problem(5000, 128, 8), Problem(300, 96, 3, columns=400)):
        chunk, gradient = problem.bytes(problem.m), problem.gradient(problem.m)
        ran = [run(problem.world, 1e-3, chunk), run(problem.world, 1e-3, chunk, gradient)]
        assert sent(problem, "ring") == sum(each.sent[0] for each in ran)
        assert sum(part * count for part, count in problem.parts()) == problem.m
        assert sum(piece * count for piece, count in problem.pieces()) == problem.rows


def test_one_process_needs_no_transport():
    for transport in ("gather", "ring"):
        alone = predict(Problem(4096, 512, 1), MACHINE, transport)
        assert alone.waiting == 0 and alone.sent == 0 and alone.memory == memory(Problem(4096, 512, 1), "gather")
    with pytest.raises(ValueError, match="transport must be one of gather, ring, rails, got 'mail'"):
        predict(Problem(64, 64, 2), MACHINE, "mail")


def test_memory_of_the_ring_is_that_of_the_own_rows_and_of_a_gather_that_of_all():
    small, large = Problem(1 << 18, 512, 8), Problem(1 << 18, 512, 1024)
    assert memory(small, "ring") == memory(large, "ring") < 1.11 * memory(replace(small, world=1), "ring")
    grown = memory(large, "gather") - memory(small, "gather")
    assert grown == (1024 - 8) * (1 << 18) * 512 * (2 + 4 + 2)


def test_a_ring_is_hidden_from_the_number_of_rows_that_it_says():
    rows = hidden_from(Problem(1, 512, 1024), MACHINE, "ring")
    shares = [predict(Problem(n, 512, 1024, host=(0, 0)), MACHINE, "ring") for n in (rows - 256, rows)]
    assert shares[0].waiting > 0.05 * shares[0].compute and shares[1].waiting <= 0.05 * shares[1].compute
    for c, x in zip(step_seconds(Problem(4 * rows, 512, 1024), MACHINE.kernels, 1024), (1024 * 1024, 3 * 1024 * 1024), strict=True):
        assert c > HGX.network.seconds(x)


def test_noise_makes_a_ring_slower_but_not_its_mean_step():
    calm = Problem(2048, 512, 64)
    quiet, noisy = (predict(problem, MACHINE, "ring") for problem in (calm, replace(calm, noise=0.3)))
    assert quiet.seconds < noisy.seconds < 2 * quiet.seconds and noisy.compute == quiet.compute


def test_measured_times_scale_the_predicted_ones(tmp_path):
    assert measured_scale("H100", tmp_path) is None
    entry = {"implementation": "fastssl", "ms": 3.0, "graph_ms": 2.5}
    case = {"predicted_for": "H100", "dtype": "bfloat16", "predicted_ms": 2.0, "entries": [entry]}
    (tmp_path / "nvidia-h100").mkdir()
    (tmp_path / "nvidia-h100" / "info_nce.json").write_text(json.dumps({"schema": 1, "cases": [case]}))
    assert measured_scale("H100", tmp_path) == 1.25 and measured_scale("H200", tmp_path) is None
    faster, usual = Kernels(MACHINE.kernels.rates, 1.25), MACHINE.kernels
    assert faster.forward(4096, 4096, 512) == pytest.approx(1.25 * usual.forward(4096, 4096, 512))


def test_the_page_has_what_the_program_predicts():
    """If this fails, run ``python -m benchmarks.scaling --write``."""
    text = page.PAGE.read_text()
    assert page.with_blocks(text, page.blocks()) == text
    with pytest.raises(ValueError, match="must hold <!-- scaling:absent --> and"):
        page.with_blocks(text, {"absent": ""})


def test_the_command_predicts_one_size(capsys):
    assert command.main(["--rows", "1024", "--world", "16"]) == 0
    said = capsys.readouterr().out
    assert "Predicted for 16 H100, a batch of 16,384 rows, D = 512" in said and said.count("| ring |") == 2
