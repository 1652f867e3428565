"""Children of fork: they lack the OpenMP threads of their parent, whose runtime waits for them for ever.

torch's own ops wait where they are large (32,768 elements), so that the inputs of the large cases are made before the fork.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastssl.ops._register import _C

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import multiprocessing, sys, threading
import torch
from fastssl import functional as F
from fastssl.momentum import EMA
from fastssl.optim import LARS, AdamW

torch.set_num_threads(2)


def make(rows, tokens, width):
    torch.manual_seed(0)
    images, pred = torch.randn(rows // 4, 3, 32, 32), torch.randn(rows // 4, 16, 192)
    x, words = torch.randn(rows, tokens, width), torch.arange(rows * tokens).view(rows, tokens)
    a, b, c, kept = torch.randn(4, rows, width).unbind()
    models = torch.nn.Linear(width, rows), torch.nn.Linear(width, rows)
    params = [torch.nn.Parameter(torch.randn(rows, width)) for _ in range(2)]
    optimizers = [AdamW(params[:1]), LARS(params[1:], lr=0.1)]
    for p, optimizer in zip(params, optimizers):
        p.grad = torch.zeros(rows, width)
        optimizer.step()  # makes its state
        p.grad = torch.randn(rows, width)
    return images, pred, torch.ones(rows // 4, 16), x, words, (a, b, c, kept), (EMA(models[0], 0.5), models[1]), params, optimizers


def steps(say, images, pred, mask, x, words, rows, ema, params, optimizers):
    say("average"), ema[0].update(ema[1])
    yield from ema[0].module.parameters()
    say("optimizers"), [o.step() for o in optimizers]
    yield from params
    a, b, c, kept = rows
    ptr = torch.tensor([1])
    say("queue"), F.queue_push_(kept, ptr, c[:-1], layout="kd"), F.queue_push_(kept.t(), ptr, c[:-1])
    yield from (kept, ptr)
    say("masks")
    ids = F.mask_ids(tuple(words.shape), 0.5, seed=3)
    yield from (ids.mask, ids.ids_keep, F.block_mask(len(words), (14, 14), 75, seed=4))
    yield from F.mask_tokens(words, mask_id=0, vocab_size=words.numel(), seed=5)
    say("tokens")
    seen = F.gather_tokens(x, ids.ids_keep)
    yield from (seen, F.restore_tokens(seen, ids.ids_restore, x[0, 0]))
    say("patches")
    yield F.masked_patch_loss(images, pred, mask, 8)
    say("losses")
    yield from (F.nt_xent(a, b), F.similarity_lse(a, c))
    if len(a) < 100:  # around the ops of these torch multiplies rows, and waits where they are large
        yield from (F.clip_loss(a, b, 1.0), F.siglip_loss(a, b, 1.0, 0.0), F.moco_loss(a, b, c.t()))


def gradients(say, images, pred, mask, x, words, rows, *_):
    say("gradients")
    a, b, x, pred = (t.clone().requires_grad_() for t in (rows[0], rows[1], x, pred))
    ids = F.mask_ids(tuple(words.shape), 0.5, seed=3)
    seen = F.gather_tokens(x, ids.ids_keep)
    F.restore_tokens(seen, ids.ids_restore, x[0, 0]).square().sum().backward()
    (F.nt_xent(a, b) + F.moco_loss(a, b, rows[2].t()) + F.masked_patch_loss(images, pred, mask, 8)).backward()
    yield from (a.grad, b.grad, x.grad, pred.grad)


def child(names, cases, wanted):
    print_now = lambda text: print(text, flush=True)
    results = [[*work(print_now, *case)] for (work, _), case in zip(names, cases)]
    torch.set_num_threads(1)  # torch's own regions would wait in the comparison
    for ours, theirs in zip(results, wanted, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    print_now("done")


def children(names, cases, wanted):
    child(names, cases[:3], wanted)
    torch.set_num_threads(2)
    thread = threading.Thread(target=child, args=(names, cases[3:], wanted))  # has a team of its own
    thread.start(), thread.join()


names = [(steps, (8, 4, 16)), (gradients, (8, 4, 16)), (steps, (300, 64, 512))]  # rows, tokens, width
cases = [make(*size) for _, size in 3 * names]
torch.randn(4000, 2000).exp()  # torch's team is there
wanted = [[*work(lambda name: None, *case)] for (work, _), case in zip(names, cases[:3])]  # and ours, were it another
process = multiprocessing.get_context("fork").Process(target=children, args=(names, cases[3:], wanted))
process.start()
process.join(60)
late = process.is_alive()
process.kill(), process.join()
sys.exit("it hangs" if late else process.exitcode)
"""


@pytest.mark.skipif(_C is None or not hasattr(os, "fork"), reason="needs the C++ kernels and fork")
def test_every_op_works_in_a_child_of_fork():
    environment = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, env=environment)
    assert ran.returncode == 0 and ran.stdout.count("done") == 2, ran.stdout + ran.stderr


def test_kernels_share_work_out_in_one_way():
    """Loops of torch's own do not know of forks."""
    others = [path.name for path in (ROOT / "csrc" / "cpu").iterdir() if "torch_parallel_for" in path.read_text()]
    assert others == ["parallel.h"]
