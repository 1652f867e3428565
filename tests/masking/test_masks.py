"""Masks of patches and frames: counts, shapes, distributions, backends, refusals; seeds and compilation also of spans."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import peers
from fastssl.masking import block_mask, grid_mask, mask_ids, multi_block_mask, num_kept, span_mask, tube_mask
from fastssl.ops import block_mask as contract
from fastssl.reference.block_mask import block_mask as reference

pytestmark = pytest.mark.usefixtures("one_thread")
SEED = st.integers(-(2**63), 2**63 - 1)


def examples(count: int):
    return settings(max_examples=count, deadline=None, database=None, derandomize=True)


def within(share: float, expected: float, count: int, sigmas: float = 4.5) -> bool:
    """A share of ``count`` draws lies within some standard deviations of its probability."""
    return abs(share - expected) <= sigmas * (expected * (1 - expected) / count) ** 0.5 + 1e-12


# --- every mask ------------------------------------------------------------------------------------------------------------

MASKS = {
    "grid": lambda rows, **how: grid_mask(rows, (6, 9), unit=3, **how),
    "tube": lambda rows, **how: tube_mask(rows, 3, 20, 0.5, **how).mask,
    "block": lambda rows, **how: block_mask(rows, (7, 9), 30, **how),
    "exact block": lambda rows, **how: block_mask(rows, (7, 9), 30, attempts=1, exact=True, **how),
    "targets": lambda rows, **how: multi_block_mask(rows, (8, 9), **how).target_ids,
    "context": lambda rows, **how: multi_block_mask(rows, (8, 9), context_keep=12, **how).context_ids,
    "spans": lambda rows, **how: span_mask(rows, 100, **how),
}
each_mask = pytest.mark.parametrize("call", MASKS.values(), ids=MASKS)


@each_mask
def test_a_seed_decides_the_mask(call):
    first = call(40, seed=7)
    assert torch.equal(first, call(40, seed=torch.tensor(7))) and torch.equal(first, call(40, seed=torch.tensor([7])))
    assert torch.equal(call(9, seed=7), first[:9]), "a row depends on the seed and its place alone"
    assert not torch.equal(first, call(40, seed=8)) and not torch.equal(first, call(40, seed=7 + 2**40))
    assert first.flatten(1).unique(dim=0).shape[0] > 4, "rows differ"


@each_mask
def test_torch_decides_where_no_seed_is_given(call):
    masks = []
    for start in (1, 1, 2):
        torch.manual_seed(start)
        masks += [call(40), call(40)]
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[4])
    generator = torch.Generator().manual_seed(5)
    drawn = call(40, generator=generator), call(40, generator=generator)
    assert torch.equal(drawn[0], call(40, generator=torch.Generator().manual_seed(5))) and not torch.equal(*drawn)


@pytest.mark.parametrize("call", [c for n, c in MASKS.items() if n not in ("targets", "context")])
def test_compiled_whole(call):
    compiled = torch.compile(lambda seed: call(40, seed=seed), fullgraph=True, backend="aot_eager")
    for seed in (3, 4):
        assert torch.equal(compiled(torch.tensor(seed)), call(40, seed=seed))
    drawn = torch.compile(lambda: call(40), fullgraph=True, backend="aot_eager")
    assert drawn().shape == call(40).shape


# --- units and tubes -------------------------------------------------------------------------------------------------------


@examples(60)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4), st.floats(0, 0.99), SEED)
def test_units_are_removed_whole(rows, down, across, unit, ratio, seed):
    grid = down * unit, across * unit
    mask = grid_mask(rows, grid, ratio, unit=unit, seed=seed)
    cells = mask.reshape(rows, down, unit, across, unit)
    assert mask.dtype == torch.float32 and mask.shape == (rows, grid[0] * grid[1]) and mask.is_contiguous()
    assert (cells == cells[:, :, :1, :, :1]).all()
    units = mask_ids((rows, down * across), ratio, seed=seed, rounding="mask_ceil").mask
    assert torch.equal(cells[:, :, 0, :, 0].reshape(rows, -1), units)
    assert (units.sum(1) == np.ceil(down * across * ratio)).all(), "SimMIM's number"


def test_noise_decides_units_and_tubes():
    noise = torch.tensor([[0.3, 0.1, 0.2, 0.4]])
    assert grid_mask(1, (2, 4), 0.5, noise=noise[:, :1].repeat(1, 8) + torch.arange(8)).tolist() == [[0.0] * 4 + [1.0] * 4]
    assert grid_mask(1, (4, 4), 0.5, unit=2, noise=noise).reshape(4, 4)[::2, ::2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    tubes = tube_mask(1, 2, 4, 0.5, noise=noise)
    assert tubes.ids_keep.tolist() == [[1, 2, 5, 6]] and tubes.ids_mask.tolist() == [[0, 3, 4, 7]]


@examples(60)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 30), st.floats(0, 0.99), SEED)
def test_tubes_run_through_all_frames(rows, frames, length, ratio, seed):
    found = tube_mask(rows, frames, length, ratio, seed=seed)
    one = mask_ids((rows, length), ratio, seed=seed, rounding="mask_floor")
    kept = num_kept(length, ratio, "mask_floor")
    assert torch.equal(found.mask.reshape(rows, frames, length), one.mask[:, None].expand(-1, frames, -1))
    assert found.ids_keep.shape == (rows, frames * kept) and (found.mask.sum(1) == frames * int(length * ratio)).all()
    for frame in range(frames):
        assert torch.equal(found.ids_keep[:, frame * kept : (frame + 1) * kept], one.ids_keep + frame * length)
    both = torch.cat([found.ids_keep, found.ids_mask], 1)
    assert torch.equal(both.gather(1, found.ids_restore), torch.arange(frames * length).expand(rows, -1))
    assert (found.mask.gather(1, found.ids_keep) == 0).all() and (found.mask.gather(1, found.ids_mask) == 1).all()


# --- blocks ----------------------------------------------------------------------------------------------------------------


@examples(120)
@given(
    st.data(),
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(1, 70),
    st.integers(1, 40),
    st.integers(1, 12),
    st.booleans(),
    SEED,
)
def test_blocks_of_every_backend_are_equal(data, rows, height, width, min_block, attempts, exact, seed):
    """Reference and the op as it runs here; also sides beyond one word of bits, aspects that overflow, and goals for each row."""
    goals = torch.tensor(data.draw(st.lists(st.integers(0, height * width), min_size=rows, max_size=rows)))
    max_block = data.draw(st.integers(min_block, 2 * min_block) | st.just(2**31 - 1))
    low = data.draw(st.sampled_from([0.3, 1.0, 1e-40, 7.0]))
    aspects = contract._aspects(
        low, data.draw(st.sampled_from([low, 1 / 0.3, 1e38]).filter(lambda high: high >= low)), goals.device
    )
    args = goals, torch.tensor(seed), aspects, rows, height, width, min_block, max_block, attempts, exact
    ours = torch.ops.fastssl.block_mask(*args)
    assert ours.dtype == torch.bool and torch.equal(ours, reference(*args))
    count = ours.sum((1, 2))
    assert (count == goals).all() if exact else (count <= goals).all()


def opened(mask, h, w):
    """Cells that lie in an h x w rectangle of masked cells."""
    windows = mask.unfold(1, h, 1).unfold(2, w, 1).all(-1).all(-1)
    out = torch.zeros_like(mask)
    for i in range(h):
        for j in range(w):
            out[:, i : out.shape[1] - h + 1 + i, j : out.shape[2] - w + 1 + j] |= windows
    return out


@pytest.mark.parametrize("h, w", [(1, 1), (2, 2), (3, 2), (2, 5), (4, 4)])
def test_masks_are_unions_of_rectangles(h, w):
    """One size of block only: a first block that is the rectangle itself, then masks that their opening does not change."""
    fixed = {"min_block": h * w, "aspect": (h / w, h / w), "seed": h}
    one = block_mask(500, (12, 40), h * w, **fixed)
    assert (one.sum((1, 2)) == h * w).all() and torch.equal(opened(one, h, w), one)
    many = block_mask(500, (12, 40), 480, max_block=h * w, attempts=2, **fixed)
    full = many[many.sum((1, 2)) <= 480 - h * w]  # no smaller block was needed for the last patches
    assert len(full) > 250 and torch.equal(opened(full, h, w), full) and not torch.equal(opened(full, h + 1, w + 1), full)


def test_a_block_lies_anywhere():
    count, height, width = 20000, 5, 7
    mask = block_mask(count, (height, width), 6, min_block=6, aspect=(1.5, 1.5), seed=1)
    corner = mask.flatten(1).int().argmax(1)
    places = torch.bincount(corner, minlength=35).reshape(height, width)
    share = places[:3, :6] / count
    assert places.sum() == places[:3, :6].sum() and all(within(s, 1 / 18, count) for s in share.flatten().tolist())


def test_aspects_of_blocks_are_log_uniform():
    """Blocks of nearly one area, one a mask: limits, mean and spread of log(h / w)."""
    mask = block_mask(6000, (60, 60), 900, min_block=800, attempts=1, seed=2)
    h, w = (mask.any(side).sum(1).double() for side in (2, 1))
    single = (h * w == mask.sum((1, 2))) & (h > 0)
    logs = (h / w)[single].log()
    limit = -torch.tensor(0.3).log().item()
    assert single.double().mean() > 0.85 and logs.abs().max() < limit + 0.05
    assert abs(logs.mean()) < 0.04 and abs(logs.std() / (limit / 3**0.5) - 1) < 0.03


def test_missing_patches_are_drawn_at_random():
    """No block fits a single row of patches: all are topped up, and each place is equally likely, also in pairs."""
    count, length = 20000, 12
    mask = block_mask(count, (1, length), 5, exact=True, seed=3)[:, 0].double()
    assert (mask.sum(1) == 5).all()
    together = mask.T @ mask / count
    assert all(within(together[i, i].item(), 5 / 12, count) for i in range(length))
    pairs = together[~torch.eye(length, dtype=torch.bool)].tolist()
    assert all(within(pair, 5 * 4 / (12 * 11), count) for pair in pairs)


def test_number_of_patches_for_each_row():
    goals = torch.tensor([0, 1, 50, 195, 196])
    assert block_mask(5, (14, 14), goals, exact=True, seed=1).sum((1, 2)).tolist() == goals.tolist()
    for row, goal in enumerate(goals.tolist()):
        assert torch.equal(block_mask(5, (14, 14), goals, seed=1)[row], block_mask(5, (14, 14), goal, seed=1)[row])
    assert (block_mask(300, (14, 14), 75, seed=1).sum((1, 2)) >= 60).all()


def test_no_table_of_a_trace_or_of_inference_is_kept():
    aspect = 0.21, 4.5
    with FakeTensorMode(), torch.device("meta"):
        assert block_mask(3, (14, 14), 75, aspect=aspect, device="cpu").shape == (3, 14, 14)
    with torch.inference_mode(), torch.device("meta"):
        first = block_mask(3, (14, 14), 75, aspect=aspect, seed=1, device="cpu")
    assert torch.equal(block_mask(3, (14, 14), 75, aspect=aspect, seed=1), first) and first.any()


def test_blocks_as_lightly_draws_them():
    """Patches masked, neighbours that differ, coverage of the middle and of edges: means over images, against lightly itself."""
    pytest.importorskip("lightly")
    peers.ready_torchvision()
    from lightly.models.utils import random_block_mask_image

    random.seed(0)
    count, goal = 1500, 75
    theirs = torch.stack([random_block_mask_image((14, 14), goal) for _ in range(count)])
    ours = block_mask(8000, (14, 14), goal, seed=0)

    def figures(mask):
        x = mask.double()
        edges = (x[:, 1:] - x[:, :-1]).abs().sum((1, 2)) + (x[:, :, 1:] - x[:, :, :-1]).abs().sum((1, 2))
        tall = (x[:, 1:] - x[:, :-1]).abs().sum((1, 2))
        return torch.stack([x.sum((1, 2)), edges, tall, x[:, 4:10, 4:10].sum((1, 2)), x[:, 0].sum(1), x[:, :, -1].sum(1)])

    a, b = figures(ours), figures(theirs)
    error = (a.var(1) / a.shape[1] + b.var(1) / b.shape[1]).sqrt()
    assert ((a.mean(1) - b.mean(1)).abs() < 4.5 * error).all(), (a.mean(1), b.mean(1), error)


@pytest.mark.parametrize("exact", [False, True])
def test_opcheck(exact):
    args = torch.tensor([5, 20]), torch.tensor(3), contract._aspects(0.3, 3.0, torch.device("cpu")), 2, 6, 7, 2, 40, 5, exact
    torch.library.opcheck(torch.ops.fastssl.block_mask.default, args)


# --- context and targets ---------------------------------------------------------------------------------------------------


@examples(60)
@given(st.integers(1, 6), st.integers(6, 16), st.integers(6, 16), st.integers(1, 5), st.integers(1, 12), SEED)
@example(1, 6, 14, 5, 5, 1_785_032_816)  # the fourth target stays, and the last one lies where earlier ones were taken out
def test_contexts_and_targets(rows, height, width, count, min_keep, seed):
    grid = height, width
    context, targets = multi_block_mask(rows, grid, num_targets=count, min_keep=min_keep, seed=seed)
    assert targets.shape[:2] == (rows, count) and min_keep <= context.shape[1]
    top, left = targets[:, :, :1] // width, targets[:, :, :1] % width
    h, w = (int(side) + 1 for side in (targets[0, 0, -1] // width - top[0, 0, 0], targets[0, 0, -1] % width - left[0, 0, 0]))
    block = (torch.arange(h)[:, None] * width + torch.arange(w)).flatten()
    assert torch.equal(targets, top * width + left + block), "rectangles of one size, in reading order"
    assert (top >= 0).all() and (top + h <= height).all() and (left >= 0).all() and (left + w <= width).all()
    area, grown = h * w / (height * width), (h + 0.5) * (w + 0.5) / (height * width)
    assert (
        grown > 0.15 - 1 / (height * width) and area < 0.2 * (1 + 1 / h) * (1 + 1 / w) and (h + 0.5) / w > 0.5 and h / (w + 0.5) < 2
    )
    assert (context[:, 1:] > context[:, :-1]).all() and (context < height * width).all()
    for row in range(rows):
        met = [k for k in range(count) if torch.isin(context[row], targets[row, k]).any()]
        if met:
            left = ~torch.isin(context[row], targets[row, : met[0] + 1])
            assert left.sum() < min_keep, "a target stays in the context only where taking it out leaves too little"
    assert torch.equal(multi_block_mask(rows, grid, num_targets=count, min_keep=min_keep, context_keep=2, seed=seed)[1], targets)


def test_a_context_is_what_targets_leave():
    """No relaxation at 14 x 14: contexts hold no target, and the smallest is not cut."""
    context, targets = multi_block_mask(500, (14, 14), seed=3)
    assert not any(torch.isin(c, t).any() for c, t in zip(context, targets, strict=True))
    assert context.shape[1] >= 13 * 13 - 4 * 39
    fixed = multi_block_mask(500, (14, 14), seed=3, context_keep=context.shape[1])
    assert torch.equal(fixed.context_ids, context), "K itself, without a look at the batch"
    short = multi_block_mask(500, (14, 14), seed=3, context_keep=5).context_ids
    assert torch.equal(short, context[:, :5])


def test_targets_stay_in_a_context_that_would_be_too_small():
    wide = {"target_scale": (0.7, 0.7), "target_aspect": (1.0, 1.0)}
    context, targets = multi_block_mask(200, (10, 10), num_targets=3, min_keep=40, seed=1, **wide)
    hidden = torch.stack([torch.isin(c, t).any() for c, t in zip(context, targets, strict=True)])
    assert context.shape[1] >= 40 and hidden.all()
    context, targets = multi_block_mask(200, (10, 10), num_targets=3, min_keep=5, seed=1, **wide)
    first = torch.stack([torch.isin(c, t[0]).any() for c, t in zip(context, targets, strict=True)])
    assert context.shape[1] >= 5 and not first.all()


def test_sizes_are_drawn_once_a_batch_and_places_for_each_sample():
    sizes = [multi_block_mask(2, (14, 14), seed=seed).target_ids.shape[2] for seed in range(200)]
    assert len(set(sizes)) > 4 and 24 <= min(sizes) <= 28 and 38 <= max(sizes) <= 45
    corner = multi_block_mask(4000, (14, 14), num_targets=2, seed=5).target_ids[:, :, 0]
    assert corner.min() == 0 and corner.flatten().unique().numel() == corner.max() // 14 * (corner % 14).max() + (
        corner.max() // 14 + (corner % 14).max() + 1
    )
    assert (corner[:, 0] == corner[:, 1]).float().mean() < 0.05


# --- refusals --------------------------------------------------------------------------------------------------------------

GRID, TUBE, BLOCK = partial(grid_mask, 2, (4, 6)), partial(tube_mask, 2, 3, 4), partial(block_mask, 2, (4, 6))
JEPA = partial(multi_block_mask, 2, (8, 8))
META = torch.zeros((), dtype=torch.int64, device="meta")
REFUSED = [
    (lambda: grid_mask(0, (4, 6)), ValueError, r"grid_mask: rows must be in \[1, "),
    (lambda: grid_mask(2.0, (4, 6)), TypeError, "grid_mask: rows must be a whole number, got float"),
    (lambda: grid_mask(2, 4), TypeError, r"grid_mask: grid must be a pair \(h, w\), got 4"),
    (lambda: grid_mask(2, (4, 0)), ValueError, "grid_mask: grid must be in"),
    (lambda: grid_mask(2, (2**16, 2**16)), ValueError, "grid_mask: grid must have fewer than 2.31 patches"),
    (lambda: GRID(unit=4), ValueError, r"grid_mask: grid must be multiples of unit 4, got \(4, 6\)"),
    (lambda: GRID(unit=0), ValueError, "grid_mask: unit must be in"),
    (lambda: GRID(1.1), ValueError, r"grid_mask: mask_ratio must be in \[0, 1\], got 1.1"),
    (lambda: GRID(rounding="up"), ValueError, "grid_mask: rounding must be one of"),
    (lambda: GRID(noise=torch.rand(2, 24), unit=2), ValueError, r"grid_mask: noise must have shape \(2, 6\).* unit"),
    (lambda: GRID(seed=1, generator=torch.Generator()), ValueError, "grid_mask: only one of noise, generator and seed"),
    (lambda: tube_mask(2, 0, 4), ValueError, "tube_mask: frames must be in"),
    (lambda: tube_mask(2, 2**16, 2**16), ValueError, "tube_mask: frames x length must be below"),
    (lambda: TUBE(-0.1), ValueError, "tube_mask: mask_ratio must be in"),
    (lambda: TUBE(seed="a"), TypeError, "tube_mask: seed must be a whole number"),
    (lambda: TUBE(generator=1), TypeError, "tube_mask: generator must be a torch.Generator, got int"),
    (lambda: TUBE(device="nowhere"), ValueError, "tube_mask: device must be a torch.device or its name, got 'nowhere'"),
    (lambda: BLOCK(25), ValueError, "block_mask: num_masked must be at most 24, the patches of grid, got 25"),
    (lambda: BLOCK(-1), ValueError, "block_mask: num_masked"),
    (lambda: BLOCK(2.0), TypeError, "block_mask: num_masked must be a whole number"),
    (lambda: BLOCK(torch.tensor([1])), ValueError, r"block_mask: num_masked must be a whole number or int64 \(2,\), got .* \(1,\)"),
    (lambda: BLOCK(torch.tensor([1.0, 2.0])), ValueError, "block_mask: num_masked must be .* got torch.float32"),
    (lambda: BLOCK(torch.tensor([1, 25])), ValueError, r"block_mask: num_masked must be in \[0, 24\], got \[1, 25\]"),
    (lambda: BLOCK(torch.tensor([1, 2]), seed=META), ValueError, "block_mask: seed must be on cpu, got meta"),
    (lambda: BLOCK(torch.tensor([1, 2]), seed=META, device="meta"), ValueError, "block_mask: num_masked must be on meta, got cpu"),
    (lambda: BLOCK(5, min_block=0), ValueError, "block_mask: min_block must be in"),
    (lambda: BLOCK(5, max_block=3), ValueError, "block_mask: max_block must be at least min_block 4, got 3"),
    (lambda: BLOCK(5, max_block=0), ValueError, "block_mask: max_block must be in"),
    (lambda: BLOCK(5, min_block=6), ValueError, "block_mask: min_block must allow a block with .* at most 5 patches .*, got 6"),
    (lambda: BLOCK(24, min_block=20), ValueError, r"block_mask: min_block must allow a block with sides below .*grid \(4, 6\)"),
    (lambda: BLOCK(torch.tensor([1, 2]), min_block=20), ValueError, "block_mask: min_block must allow a block"),
    (lambda: BLOCK(7, min_block=7, aspect=(1, 1)), ValueError, r"min_block must allow .* aspect \(1.0, 1.0\) and at most 7"),
    (lambda: block_mask(2, (1, 30), 5), ValueError, "block_mask: min_block must allow a block"),
    (lambda: BLOCK(5, aspect=2.0), TypeError, "block_mask: aspect must be a pair"),
    (lambda: BLOCK(5, aspect=(2.0, 1.0)), ValueError, "block_mask: aspect must be .* 0 < low <= high"),
    (lambda: BLOCK(5, aspect=(0.0, 1.0)), ValueError, "block_mask: aspect must be .* 0 < low <= high"),
    (lambda: BLOCK(5, aspect=(0.5, float("nan"))), ValueError, "block_mask: aspect must be"),
    (lambda: BLOCK(5, aspect=(0.5, "1")), TypeError, "block_mask: aspect must be a number, got str"),
    (lambda: BLOCK(5, attempts=0), ValueError, "block_mask: attempts must be in"),
    (lambda: BLOCK(5, exact=1), TypeError, "block_mask: exact must be True or False, got int"),
    (lambda: BLOCK(5, seed=2**63), ValueError, r"block_mask: seed must be in"),
    (lambda: BLOCK(5, seed=True), TypeError, "block_mask: seed must be a whole number"),
    (lambda: BLOCK(5, seed=torch.zeros(2, dtype=torch.int64)), ValueError, "block_mask: seed must be"),
    (lambda: BLOCK(5, seed=torch.zeros(1)), ValueError, "block_mask: seed must be"),
    (lambda: BLOCK(5, seed=1, generator=torch.Generator()), ValueError, "block_mask: only one of generator and seed"),
    (lambda: BLOCK(5, generator=3), TypeError, "block_mask: generator must be a torch.Generator, got int"),
    (lambda: BLOCK(5, generator=torch.Generator(), device="meta"), ValueError, "block_mask: generator must be on meta, got cpu"),
    (lambda: block_mask(2, (513, 3), 5), ValueError, r"block_mask: grid must be at most 512 on each side, got \(513, 3\)"),
    (lambda: multi_block_mask(2, (1, 8)), ValueError, "multi_block_mask: grid must be at least 2 on each side"),
    (lambda: JEPA(num_targets=0), ValueError, "multi_block_mask: num_targets must be in"),
    (lambda: JEPA(target_scale=(0.1, 1.5)), ValueError, r"multi_block_mask: target_scale must be in \(0, 1\]"),
    (lambda: JEPA(context_scale=(0.0, 1.0)), ValueError, "multi_block_mask: context_scale must be .* 0 < low"),
    (lambda: JEPA(target_aspect=(2.0, 1.0)), ValueError, "multi_block_mask: target_aspect must be"),
    (lambda: JEPA(min_keep=0), ValueError, "multi_block_mask: min_keep must be in"),
    (lambda: JEPA(min_keep=60), ValueError, "multi_block_mask: min_keep and context_keep must be at most 49, .* got 60"),
    (lambda: JEPA(context_keep=60), ValueError, "multi_block_mask: min_keep and context_keep must be at most 49, .* got 60"),
    (lambda: JEPA(context_keep=0), ValueError, "multi_block_mask: context_keep must be in"),
    (lambda: JEPA(seed=1.0), TypeError, "multi_block_mask: seed must be a whole number"),
    (lambda: JEPA(device="meta", seed=1), NotImplementedError, "multi_block_mask: context_keep must be given as a number"),
    (lambda: JEPA(seed=META, context_keep=9), NotImplementedError, "multi_block_mask: seed must be given as a number"),
]


@pytest.mark.parametrize("call, error, words", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_attempts_end():
    with pytest.raises(ValueError, match=r"block_mask: attempts must be in \[1, 1048576\), got 2147483647"):
        block_mask(2, (5, 6), 9, attempts=2**31 - 1)
