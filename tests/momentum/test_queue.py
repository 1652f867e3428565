"""queue_push_, MoCoQueue, MemoryBank, NTXentLoss with a bank: against a list of rows, against lightly, and what must not happen."""

import copy
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl.functional import info_nce, moco_loss, queue_push_, similarity_lse
from fastssl.loss import NTXentLoss
from fastssl.momentum.queue import MemoryBank, MoCoQueue
from fastssl.ops._register import _C, why_not_host

pytestmark = pytest.mark.usefixtures("one_thread")

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)
GAP = 777.0


def examples(count: int):
    return settings(max_examples=count, deadline=None, database=None, derandomize=True)


def push_rows(rows: list, ptr: int, new: list, overflow: str) -> int:
    """The semantics, on a plain list: MoCo's modulo write one by one, or lightly's truncation. Returns the next pointer."""
    size = len(rows)
    if overflow == "wrap":
        for i, row in enumerate(new):
            rows[(ptr + i) % size] = row
        return (ptr + len(new)) % size
    rows[ptr : ptr + len(new)] = new[: size - ptr]
    return 0 if ptr + len(new) >= size else ptr + len(new)


def laid(tensor, how: str):
    """The same matrix in another memory layout; "gaps": a view of a wider one that holds GAP elsewhere."""
    if how == "dense":
        return tensor.clone(memory_format=torch.contiguous_format)
    if how == "turned":
        return tensor.t().contiguous().t()
    wide = tensor.new_full((2 * tensor.shape[0] + 1, 3 * tensor.shape[1] + 2), GAP)
    view = wide[1::2, 2::3]
    view.copy_(tensor)
    return view


SIZE, WIDTH = st.integers(1, 12) | st.integers(30, 70), st.integers(1, 9) | st.just(67)
LAYOUT, OVERFLOW = st.sampled_from(["dk", "kd"]), st.sampled_from(["wrap", "truncate"])
HOW = st.sampled_from(["dense", "turned", "gaps"])


@examples(500)
@given(st.data(), LAYOUT, OVERFLOW, st.sampled_from(FLOATS), SIZE, WIDTH)
def test_pushes_are_those_of_a_list(data, layout, overflow, dtype, size, width):
    """Any batch against any size, strided queues and keys, other dtypes, with and without labels; thousands of pushes in all."""
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    start = torch.randn(size, width).to(dtype)
    queue = laid(start.t() if layout == "dk" else start, data.draw(HOW))
    rows, ptr = list(start), torch.tensor(data.draw(st.integers(0, size - 1))).reshape(data.draw(st.sampled_from([(), (1,)])))
    place, label_queue = int(ptr), None
    if data.draw(st.booleans()):
        stride = data.draw(st.integers(1, 2))
        label_queue = torch.full((stride * size,), -1, dtype=data.draw(st.sampled_from(INTEGERS[:3])))[::stride]
        names, label_place = label_queue.tolist(), place
    for _ in range(data.draw(st.integers(1, 8))):
        count = data.draw(st.integers(1, 2 * size + 2) | st.just(size))
        keys = laid(torch.randn(count, width).to(data.draw(st.sampled_from(FLOATS))), data.draw(HOW))
        keys.requires_grad_(data.draw(st.booleans()))
        if data.draw(st.integers(0, 9)) == 0:
            keys = (queue.t() if layout == "dk" else queue)[:count]  # rows of the queue itself
            count = len(keys)
        labels = None if label_queue is None else torch.randint(0, 128, (count,)).to(data.draw(st.sampled_from(INTEGERS)))
        before, pushed = (queue._version, ptr._version), list(keys.detach().to(dtype, copy=True))
        queue_push_(queue, ptr, keys, layout=layout, overflow=overflow, label_queue=label_queue, labels=labels)
        place = push_rows(rows, place, pushed, overflow)
        assert torch.equal(queue.t() if layout == "dk" else queue, torch.stack(rows)) and int(ptr) == place
        assert queue._version > before[0] and ptr._version > before[1] and not queue.requires_grad
        if labels is not None:
            label_place = push_rows(names, label_place, labels.tolist(), overflow)
            assert label_queue.tolist() == names
    if queue._base is not None and queue._base.shape[0] > queue.shape[0]:
        queue.fill_(GAP)
        assert (queue._base == GAP).all()


@pytest.mark.parametrize("layout", ["dk", "kd"])
def test_large_pushes_with_one_thread_and_two(layout):
    size, width, start = 70001, 40, 69000
    keys, results = torch.randn(3000, width), []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        queue, ptr = torch.zeros(size, width), torch.tensor([start])
        queue_push_(queue.t() if layout == "dk" else queue, ptr, keys, layout=layout)
        results.append(queue)
    torch.set_num_threads(1)
    places = (start + torch.arange(3000)) % size
    assert torch.equal(results[0][places], keys) and results[0].count_nonzero() == keys.count_nonzero()
    assert int(ptr) == start + 3000 - size and all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_columns_in_blocks_and_beside_them(dtype):
    """Counts and widths around the blocks that are transposed in registers, and around those that a row takes at once."""
    for count, width in [(1, 1), (1, 130), (2, 8), (3, 7), (8, 16), (63, 9), (64, 33), (65, 4), (129, 17), (256, 9), (261, 2)]:
        keys = (torch.arange(count * width) % 251).view(count, width).to(dtype)
        for queue in (torch.zeros(width, 300, dtype=dtype), torch.zeros(width + 1, 430, dtype=dtype)[1:, 3:303]):
            ptr = torch.tensor([10])
            queue_push_(queue, ptr, keys)
            assert torch.equal(queue[:, 10 : 10 + count], keys.t()) and int(ptr) == 10 + count
            assert queue.count_nonzero() == keys.count_nonzero()


Q, P, N_ = torch.zeros(9, 4), torch.tensor([3]), torch.ones(2, 4)
SLOWLY = {
    "another layout": (Q, P, N_, None, None, "xy", "wrap"),
    "another overflow": (Q, P, N_, None, None, "kd", None),
    "a number": (Q, 3, N_, None, None, "kd", "wrap"),
    "another width": (Q, P, N_[:, :3], None, None, "kd", "wrap"),
    "another dtype": (Q, P, N_.double(), None, None, "kd", "wrap"),
    "no keys": (Q, P, N_[:0], None, None, "kd", "wrap"),
    "a vector": (Q, P, N_[0], None, None, "kd", "wrap"),
    "integers": (Q.long(), P, N_.long(), None, None, "kd", "wrap"),
    "a queue with gaps": (torch.zeros(9, 5)[:, :4], P, N_, None, None, "kd", "wrap"),
    "the queue's own rows": (Q, P, Q[:2], None, None, "kd", "wrap"),
    "a pointer out of range": (Q, torch.tensor([9]), N_, None, None, "kd", "wrap"),
    "a pointer below 0": (Q, torch.tensor([-1]), N_, None, None, "kd", "wrap"),
    "a narrow pointer": (Q, P.int(), N_, None, None, "kd", "wrap"),
    "two pointers": (Q, torch.tensor([3, 4]), N_, None, None, "kd", "wrap"),
    "labels alone": (Q, P, N_, None, torch.ones(2).long(), "kd", "wrap"),
    "a label queue alone": (Q, P, N_, torch.ones(9).long(), None, "kd", "wrap"),
    "too few labels": (Q, P, N_, torch.ones(9).long(), torch.ones(1).long(), "kd", "wrap"),
    "labels of another dtype": (Q, P, N_, torch.ones(9).long(), torch.ones(2).int(), "kd", "wrap"),
    "labels that are floats": (Q, P, N_, torch.ones(9), torch.ones(2), "kd", "wrap"),
    "keys on meta": (Q, P, N_.to("meta"), None, None, "kd", "wrap"),
    "all on meta": (Q.to("meta"), P.to("meta"), N_.to("meta"), None, None, "kd", "wrap"),
    "a sparse queue": (Q.to_sparse(), P, N_, None, None, "kd", "wrap"),
    "negated keys": (Q, P, torch._neg_view(N_), None, None, "kd", "wrap"),
}


@pytest.mark.skipif(why_not_host is not None, reason="fastssl._C is not in use")
def test_the_quick_way_takes_plain_calls_alone():
    for name, arguments in SLOWLY.items():
        assert not _C.push_now(*arguments), name
    with torch.inference_mode():
        assert not _C.push_now(Q, P, N_, None, None, "kd", "wrap")
        made = torch.zeros(9, 4)
    assert not _C.push_now(made, P, N_, None, None, "kd", "wrap")
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert not _C.push_now(Q, P, N_, None, None, "kd", "wrap")
    with torch.device("cpu"):  # a mode of torch functions
        assert not _C.push_now(Q, P, N_, None, None, "kd", "wrap")
    assert not Q.any() and P.item() == 3
    for columns in (False, True):
        queue, ptr, keys = torch.zeros(9, 4), torch.tensor([8]), torch.ones(2, 4, requires_grad=True)
        names, before = torch.zeros(9).long(), queue._version
        given = (queue.t() if columns else queue), ptr, keys, names, torch.ones(2).long(), "dk" if columns else "kd", "wrap"
        assert _C.push_now(*given)
        assert queue[[0, 8]].all() and not queue[1:8].any() and names[[0, 8]].all() and names.sum() == 2 and ptr.item() == 1
        assert queue._version > before and not queue.requires_grad


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_opcheck(columns, truncate):
    op = torch.ops.fastssl.queue_push_.default
    for labels in (None, torch.arange(3)):
        label_queue = None if labels is None else torch.full((5,), -1)
        queue = torch.randn(4, 5) if columns else torch.randn(5, 4)
        torch.library.opcheck(op, (queue, torch.tensor([3]), torch.randn(3, 4), label_queue, labels, columns, truncate))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend):
    """A push between two reads of the queue: the first read sees the old keys, the second the new ones."""
    memory = MoCoQueue(4, 7, labels=True)
    eager = copy.deepcopy(memory)

    def step(memory, keys, labels):
        before = memory.queue.sum()
        memory.push(keys, labels)
        return before, memory.queue.sum()

    compiled = torch.compile(step, fullgraph=True, backend=backend)
    for _ in range(4):
        keys, labels = torch.randn(3, 4), torch.randint(9, (3,))
        torch.testing.assert_close(compiled(memory, keys, labels), step(eager, keys, labels))
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(memory.buffers(), eager.buffers(), strict=True))


LOSSES = {
    "moco_loss dk": lambda q, k, memory: moco_loss(q, k, memory.queue),
    "moco_loss kd": lambda q, k, memory: moco_loss(q, k, memory.keys, layout="kd"),
    "info_nce": lambda q, k, memory: info_nce(q, k, memory.keys),
    "similarity_lse": lambda q, k, memory: similarity_lse(q, memory.keys, scale=5.0).sum(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_a_push_between_loss_and_backward_leaves_the_gradient_alone(name, dtype, isa):
    memory = MoCoQueue(16, 64, dtype=torch.float32 if name.startswith("moco") else dtype)
    q, k = (F.normalize(torch.randn(8, 16), dim=1).to(dtype) for _ in range(2))
    gradients = []
    for push in (False, True):
        leaf = q.clone().requires_grad_()
        loss = LOSSES[name](leaf, k, memory)
        if push:
            memory.push(torch.full((64, 16), torch.nan))
        loss.backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients) and memory.queue.isnan().all()


def test_autograd_refuses_a_plain_loss_whose_queue_was_pushed():
    memory, bank, q = MoCoQueue(4, 6), MemoryBank(6, 4), torch.randn(3, 4, requires_grad=True)
    for rows, push in ((memory.keys, memory.push), (bank(q)[1], bank.push)):
        loss = (q @ rows.t()).logsumexp(1).sum()
        push(q)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
    _, copied = bank(q, update=True)
    (q @ copied.t()).logsumexp(1).sum().backward()
    assert q.grad.isfinite().all()


def test_a_new_queue_holds_random_unit_keys():
    for layout in ("dk", "kd"):
        memory = MoCoQueue(32, 500, layout=layout, labels=True)
        assert memory.queue.shape == ((32, 500) if layout == "dk" else (500, 32)) and memory.keys.shape == (500, 32)
        assert memory.keys.data_ptr() == memory.queue.data_ptr()
        torch.testing.assert_close(memory.keys.norm(dim=1), torch.ones(500))
        assert memory.keys.mean(0).abs().max() < 0.05 and memory.keys.unique(dim=0).shape == (500, 32)
        assert memory.queue_ptr.tolist() == [0] and memory.queue_labels.tolist() == [-1] * 500


def test_state_of_the_moco_repository_loads_and_copies_are_independent():
    memory = MoCoQueue(4, 6)
    assert [(name, tuple(t.shape)) for name, t in memory.state_dict().items()] == [("queue", (4, 6)), ("queue_ptr", (1,))]
    state = {"queue": torch.randn(4, 6), "queue_ptr": torch.tensor([5])}
    memory.load_state_dict(state)
    twins = copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))
    keys = torch.randn(2, 4)
    memory.push(keys.half())
    assert torch.equal(memory.queue[:, [5, 0]], keys.half().float().t()) and memory.queue_ptr.tolist() == [1]
    for twin in twins:
        assert torch.equal(twin.queue, state["queue"]) and twin.queue_ptr.tolist() == [5]
        twin.push(keys.half())
        assert torch.equal(twin.queue, memory.queue)
    assert MoCoQueue(4, 6).bfloat16().queue_ptr.dtype == torch.int64


KEYS, LABELS = torch.randn(3, 4), torch.arange(3)
QUEUE, BANK, LOSS = partial(MoCoQueue, 4, 6), partial(MemoryBank, 6, 4), partial(NTXentLoss, 0.5, (6, 4))
LABELLED = partial(QUEUE, labels=True)
REFUSED = [
    (QUEUE, lambda m: m.push(KEYS[:, :3]), ValueError, r"keys must have the queue's width 4, got shape \(3, 3\)"),
    (QUEUE, lambda m: m.push(KEYS[:0]), ValueError, "keys must have at least one row"),
    (QUEUE, lambda m: m.push(KEYS[0]), ValueError, r"keys must be 2-D \(N, D\)"),
    (QUEUE, lambda m: m.push(KEYS.long()), TypeError, "keys must be float32.* got torch.int64"),
    (QUEUE, lambda m: m.push([[1.0] * 4]), TypeError, "keys must be a tensor"),
    (QUEUE, lambda m: m.push(KEYS.to("meta")), ValueError, "same device, got cpu and meta"),
    (QUEUE, lambda m: m.push(KEYS, LABELS), ValueError, "MoCoQueue: labels needs labels=True"),
    (LABELLED, lambda m: m.push(KEYS), ValueError, "MoCoQueue: labels must be given, since labels=True"),
    (LABELLED, lambda m: m.push(KEYS, LABELS[:2]), ValueError, r"labels must have shape \(3,\)"),
    (LABELLED, lambda m: m.push(KEYS, LABELS.float()), TypeError, "labels must have an integer dtype"),
    (BANK, lambda m: m(KEYS[:, :3], update=True), ValueError, "output must have the bank's width 4"),
    (BANK, lambda m: m(KEYS, LABELS, update=True), ValueError, "MemoryBank: labels needs labels=True"),
    (BANK, lambda m: m(KEYS, update=torch.ones(2)), TypeError, "MemoryBank: update must be True or False, got Tensor"),
    (BANK, lambda m: m.read(KEYS.to("meta")), ValueError, "on the device of the bank, cpu, got meta"),
    (lambda: MemoryBank(6), lambda m: m(KEYS.long(), update=True), TypeError, "output must be float32"),
    (lambda: MemoryBank(6), lambda m: m.push(KEYS[:, :0]), ValueError, "output must have at least one row and one column"),
    (LOSS, lambda m: m(KEYS[:, :3], KEYS[:, :3]), ValueError, "bank's width 4"),
    (LOSS, lambda m: m(KEYS, KEYS[:2]), ValueError, "NTXentLoss: out0 and out1 must have the same"),
    (lambda: NTXentLoss(float("nan"), (6, 4)), lambda m: m(KEYS, KEYS), ValueError, "temperature must be finite"),
]


@pytest.mark.parametrize("build, call, error, words", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_refused_calls_change_nothing(build, call, error, words):
    module = build()
    before = [(t, t.clone(), t._version) for t in module.buffers()]
    with pytest.raises(error, match=words):
        call(module)
    assert len(before) == len(list(module.buffers()))
    for now, (same, value, version) in zip(module.buffers(), before, strict=True):
        assert now is same and torch.equal(now, value) and now._version == version


NEVER = [
    (lambda: MoCoQueue(0, 6), ValueError, "MoCoQueue: dim must be at least 1, got 0"),
    (lambda: MoCoQueue(4, 6.0), TypeError, "MoCoQueue: size must be a whole number, got float"),
    (lambda: MoCoQueue(4, True), TypeError, "MoCoQueue: size must be a whole number, got bool"),
    (lambda: MoCoQueue(4, 6, layout="kk"), ValueError, "MoCoQueue: layout must be one of 'dk', 'kd', got 'kk'"),
    (lambda: MoCoQueue(4, 6, overflow="assert"), ValueError, "MoCoQueue: overflow must be one of 'wrap', 'truncate'"),
    (lambda: MoCoQueue(4, 6, dtype=torch.int64), TypeError, "MoCoQueue: dtype must be float32"),
    (lambda: MoCoQueue(4, 10**400), ValueError, r"MoCoQueue: size must be below 2\^31, got an integer beyond float64"),
    (lambda: MoCoQueue(4, 6, dtype="float32"), TypeError, "MoCoQueue: dtype must be float32.* got str"),
    (lambda: MoCoQueue(4, 6, labels=torch.ones(2)), TypeError, "MoCoQueue: labels must be True or False, got Tensor"),
    (lambda: MemoryBank(6, persistent=None), TypeError, "MemoryBank: persistent must be True or False, got NoneType"),
    (lambda: MemoryBank(6, gather_distributed=1), TypeError, "MemoryBank: gather_distributed must be True or False, got int"),
    (lambda: MemoryBank(-1), ValueError, "MemoryBank: size must be at least 0, got -1"),
    (lambda: MemoryBank((6, 4)), TypeError, "MemoryBank: size must be a whole number, got tuple"),
    (lambda: MemoryBank(6, 0), ValueError, "MemoryBank: dim must be at least 1, got 0"),
    *[
        (lambda size=size: NTXentLoss(0.5, size), ValueError, r"NTXentLoss: memory_bank_size must be 0, K or \(K, D\)")
        for size in (-1, (6, 0), (-6, 4), (), (6, 4, 2), (6.0, 4), ("6", 4))
    ],
    (lambda: NTXentLoss(0.5, True), TypeError, r"NTXentLoss: memory_bank_size must be K or \(K, D\), got bool"),
]


@pytest.mark.parametrize("call, error, words", NEVER, ids=[str(i) for i in range(len(NEVER))])
def test_refused_to_be_built(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_labels_in_the_memory_that_they_are_pushed_to_are_read_first():
    label_queue, ptr = torch.arange(5), torch.tensor([1])
    queue_push_(torch.zeros(3, 5), ptr, torch.ones(2, 3), label_queue=label_queue, labels=label_queue[0:2])
    assert label_queue.tolist() == [0, 0, 1, 3, 4]


NEVER_WRITTEN = {
    "negated pointer": (TypeError, "ptr must not be a lazily negated view", lambda: (Q, torch._neg_view(torch.tensor([-3])), {})),
    "expanded queue": (ValueError, r"queue must not be expanded.*strides \(0, 1\)", lambda: (Q[:1].expand(9, 4), P, {})),
    "expanded labels": (ValueError, "label_queue must not be expanded", lambda: (Q, P, labels(torch.zeros(1).long().expand(9)))),
    "pointer in the labels": (ValueError, "ptr and label_queue share memory", lambda: (Q, L[2:3], labels(L))),
    "pointer in the queue": (ValueError, "queue and ptr share memory", lambda: (Q, Q[0, :2].view(torch.int64), {})),
    "sparse pointer": (TypeError, "ptr must be a dense tensor", lambda: (Q, P.to_sparse(), {})),
    "no pointer": (TypeError, "ptr must be an int64 tensor of one element, got int", lambda: (Q, 3, {})),
    "freed queue": (ValueError, "queue must have a storage of at least 144 bytes, got 0", lambda: (freed(9, 4), P, {})),
}
L = torch.zeros(9).long()


def labels(queue):
    return {"label_queue": queue, "labels": torch.ones(2).long()}


def freed(*shape):
    tensor = torch.zeros(shape)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize("name", NEVER_WRITTEN)
def test_what_cannot_be_written_is_refused_before_anything_is(name):
    error, words, call = NEVER_WRITTEN[name]
    queue, ptr, options = call()
    with pytest.raises(error, match=f"queue_push_: {words}"):
        queue_push_(queue, ptr, N_, layout="kd", **options)
    assert not Q.any() and P.item() == 3 and not L.any()


def test_keys_and_labels_in_any_memory_that_is_written_are_read_first():
    queue, ptr, label_queue = torch.arange(18.0).view(9, 2), torch.tensor([8]), torch.arange(9)
    queue_push_(queue, ptr, queue[:1], layout="kd", label_queue=label_queue, labels=ptr)
    assert queue[8].tolist() == [0.0, 1.0] and ptr.item() == 0 and label_queue[8] == 8
    queue_push_(queue, ptr, torch.complex(N_, N_).conj().imag[:, :2], layout="kd")
    assert (queue[:2] == -1).all()


def test_a_compiled_push_with_a_pointer_out_of_range_writes_nothing():
    push = torch.compile(lambda q, p, k: queue_push_(q, p, k, layout="kd"), backend="aot_eager", fullgraph=True)
    for wrong in (-1, 9):
        with pytest.raises((RuntimeError, ValueError), match=r"ptr must be in \[0, 9\)"):
            push(Q, torch.tensor([wrong]), N_)
    assert not Q.any()
