"""``fastssl.compat.moco`` beside the published steps of MoCo in plain PyTorch, in one process and in two."""

import copy
import math
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastssl.compat import moco
from tests.support.compat_nets import Net, images, state, wander
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")


class Steps:
    """MoCo's steps as published, for all ranks in one process: per rank two encoders; one queue. Batches of shape (N, 3, 6, 6)."""

    def __init__(self, model, ranks=1):
        self.q = [copy.deepcopy(model.encoder_q) for _ in range(ranks)]
        self.k = [copy.deepcopy(model.encoder_k) for _ in range(ranks)]
        self.queue, self.ptr, self.m, self.T = model.queue.clone(), 0, model.m, model.T

    def __call__(self, im_q, im_k, order=None):
        """Lists by rank -> logits by rank. ``order`` shuffles the key images of all ranks."""
        unit = partial(F.normalize, dim=1)
        q = [unit(encoder(x)) for encoder, x in zip(self.q, im_q, strict=True)]
        with torch.no_grad():
            for ours, theirs in zip(self.q, self.k, strict=True):
                for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
                    b.copy_(b * self.m + a * (1 - self.m))
            rows = torch.cat(im_k)
            order = torch.arange(len(rows)) if order is None else order
            keys = torch.empty(len(rows), len(self.queue))
            keys[order] = torch.cat([unit(f(x)) for f, x in zip(self.k, rows[order].chunk(len(self.k)), strict=True)])
        by_rank = keys.chunk(len(self.q))
        logits = [torch.cat([(a * b).sum(1)[:, None], a @ self.queue], 1) / self.T for a, b in zip(q, by_rank, strict=True)]
        size = self.queue.shape[1]
        self.queue = self.queue.clone()
        for i, key in enumerate(keys):
            self.queue[:, (self.ptr + i) % size] = key
        self.ptr = (self.ptr + len(keys)) % size
        return logits


def percent(logits, top):
    return (logits.topk(top)[1] == 0).sum()[None] * (100.0 / len(logits))


def assert_same_state(model, steps, rank=0):
    torch.testing.assert_close(model.queue, steps.queue)
    assert model.queue_ptr.tolist() == [steps.ptr]
    for ours, theirs in ((model.encoder_q, steps.q[rank]), (model.encoder_k, steps.k[rank])):
        torch.testing.assert_close(state(ours), state(theirs))


@pytest.mark.parametrize("group", [False, True], ids=["no process group", "group of one"])
@pytest.mark.parametrize("call", ["forward", "loss"])
def test_moco_follows_the_repository(call, group, tmp_path):
    """Batches that do not divide K, one larger than K; K of at least 4 so that acc@5 exists; the push comes before the backward."""
    with process_group(tmp_path, 0, 1) if group else nullcontext():
        model = moco.MoCo(Net, dim=8, K=21, m=0.9, mlp=True)
        steps = Steps(model)
        for count in (5, 7, 3, 21, 1, 30, 6):
            im_q, im_k = images(count), images(count)
            want = steps([im_q], [im_k])[0]
            F.cross_entropy(want, torch.zeros(count, dtype=torch.int64)).backward()
            if call == "forward":
                logits, labels = model(im_q=im_q, im_k=im_k)
                torch.testing.assert_close(logits, want)
                assert labels.dtype == torch.int64 and labels.tolist() == [0] * count
                loss = F.cross_entropy(logits, labels)
            else:
                loss, acc1, acc5 = model.loss(im_q, im_k)
                assert torch.equal(acc1, percent(want, 1)) and torch.equal(acc5, percent(want, 5))
                torch.testing.assert_close(loss, F.cross_entropy(want, torch.zeros(count, dtype=torch.int64)))
            loss.backward()
            largest = max(p.grad.abs().max().item() for p in steps.q[0].parameters() if p.requires_grad)
            for ours, theirs in zip(model.encoder_q.parameters(), steps.q[0].parameters(), strict=True):
                if theirs.requires_grad:  # small entries are sums of large terms that cancel
                    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5 * largest)
                    with torch.no_grad():
                        ours -= 0.1 * ours.grad
                        theirs -= 0.1 * theirs.grad
                    ours.grad = theirs.grad = None
            assert_same_state(model, steps)


def test_moco_state_is_the_repositorys():
    torch.manual_seed(3)
    q, k = Net(num_classes=8), Net(num_classes=8)
    for encoder in (q, k):
        encoder.fc = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), encoder.fc)
    queue = F.normalize(torch.randn(8, 10), dim=0)
    want = {"queue": queue, "queue_ptr": torch.zeros(1, dtype=torch.int64)}
    want |= {f"encoder_q.{name}": t for name, t in q.state_dict().items()}
    want |= {f"encoder_k.{name}": t for name, t in q.state_dict().items()}
    torch.manual_seed(3)
    model = moco.MoCo(Net, 8, 10, mlp=True)
    assert list(model.state_dict()) == list(want)
    assert all(torch.equal(t, want[name]) for name, t in model.state_dict().items())
    assert not any(p.requires_grad for p in model.encoder_k.parameters()) and model.encoder_q.fc[0].weight.requires_grad
    other = moco.MoCo(Net, 8, 10, mlp=True)
    other.load_state_dict(model.state_dict())
    pickle.loads(pickle.dumps(copy.deepcopy(other)))


def test_moco_methods_fit_another_class():
    class Theirs(nn.Module):
        _dequeue_and_enqueue = moco.MoCo._dequeue_and_enqueue
        _momentum_update_key_encoder = moco.MoCo._momentum_update_key_encoder

        def __init__(self, model):
            super().__init__()
            self.encoder_q, self.encoder_k = copy.deepcopy(model.encoder_q), copy.deepcopy(model.encoder_k)
            self.K, self.m, self.T = model.K, model.m, model.T
            self.register_buffer("queue", model.queue.clone())
            self.register_buffer("queue_ptr", model.queue_ptr.clone())

        def forward(self, im_q, im_k):
            self._momentum_update_key_encoder()
            self._dequeue_and_enqueue(F.normalize(self.encoder_k(im_k), dim=1))

    model = moco.MoCo(Net, 8, 21, m=0.7)
    theirs, steps = Theirs(model), Steps(model)
    for count in (5, 30, 8):
        im_q, im_k = images(count), images(count)
        wander(theirs.encoder_q)
        steps.q[0].load_state_dict(theirs.encoder_q.state_dict())
        theirs(im_q, im_k)
        steps([im_q], [im_k])
        torch.testing.assert_close(theirs.queue, steps.queue)
        torch.testing.assert_close(state(theirs.encoder_k), state(steps.k[0]))
        assert theirs.queue_ptr.tolist() == [steps.ptr]


def test_moco_loss_makes_no_logits():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                Largest.elements = max(Largest.elements, t.numel() if isinstance(t, torch.Tensor) else 0)
            return out

    model, (im_q, im_k) = moco.MoCo(Net, 8, 2048), images(128).repeat(2, 1, 1, 1).chunk(2)
    with Largest():
        model.loss(im_q, im_k)[0].backward()
    assert 8 * 2048 <= Largest.elements < 128 * 2048
    with Largest():
        model(im_q, im_k)
    assert Largest.elements == 128 * 2049


def test_moco_refuses():
    for arguments, word in (
        ((None,), "base_encoder"),
        ((Net, 0), "dim"),
        ((Net, 8, 0), "K"),
        ((Net, 8, 10.0), "K"),
        ((Net, 8, 10, 1.5), "m must"),
        ((Net, 8, 10, math.nan), "m must"),
        ((Net, 8, 10, 0.9, 0.0), "T must"),
        ((lambda num_classes: nn.Linear(6, num_classes), 8, 10, 0.9, 0.1, True), "fc"),
    ):
        with pytest.raises((TypeError, ValueError), match=word):
            moco.MoCo(*arguments)
    model = moco.MoCo(Net, 8, 10).eval()
    wide = moco.MoCo(lambda num_classes: Net(num_classes + 1), 8, 10).eval()
    for broken, im_q, im_k, word in ((model, 3, 2, "as many"), (model, 0, 0, "at least one"), (wide, 3, 3, r"\(3, 8\)")):
        wander(broken.encoder_q)
        before = state(broken)
        for call in (broken, broken.loss):
            with pytest.raises(ValueError, match=word):
                call(images(im_q), images(im_k))
        assert all(torch.equal(t, before[name]) for name, t in state(broken).items())


# --- MoCo over two processes -------------------------------------------------------------------------------------------------


class process_group:
    def __init__(self, path, rank, ranks):
        self.options = {"init_method": f"file://{path}/rendezvous", "rank": rank, "world_size": ranks}

    def __enter__(self):
        dist.init_process_group("gloo", **self.options)

    def __exit__(self, *_):
        dist.destroy_process_group()


def _moco_rank(rank, world):
    """Each rank runs the steps of both, and compares its own with them."""
    for call in ("forward", "loss"):
        torch.manual_seed(0)
        model = moco.MoCo(Net, dim=8, K=21, m=0.9)
        steps = Steps(model, ranks=world)
        batches = [(images(2 * n).chunk(2), images(2 * n).chunk(2)) for n in (4, 7, 3)]
        order_of_rank_0 = torch.Generator().manual_seed(100)
        torch.manual_seed(100 + rank)
        model.forward = getattr(model, call)
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        for im_q, im_k in batches:
            want = steps(im_q, im_k, torch.randperm(2 * len(im_q[0]), generator=order_of_rank_0))
            labels = torch.zeros(len(want[rank]), dtype=torch.int64)
            truth = torch.stack([F.cross_entropy(logits, labels) for logits in want])
            truth.mean().backward()
            out = parallel(im_q[rank], im_k[rank])
            loss = out[0] if call == "loss" else F.cross_entropy(*out)
            torch.testing.assert_close(loss, truth[rank])
            loss.backward()
            for p, *both in zip(model.encoder_q.parameters(), *(q.parameters() for q in steps.q), strict=True):
                if p.requires_grad:
                    torch.testing.assert_close(p.grad, both[0].grad + both[1].grad, rtol=1e-4, atol=1e-6)
                    p.grad = both[0].grad = both[1].grad = None
            assert_same_state(model, steps, rank)


def test_moco_over_two_processes(tmp_path):
    run_processes(_moco_rank, 2, tmp_path)
