"""Compile memory-bound kernels for sm_80, sm_90, sm_100 and sm_120 through their launchers, at shapes of real training. What the
assembler says of them is judged as in ``compile.py``; besides, elements that lie side by side are read 16 bytes at a time.
``test_compile.py`` runs it.

python -m tests.without_gpu.compile_launched [--today | --all]      as in compile
"""

import re
import sys

import torch
from triton.runtime import JITFunction

from fastssl.kernels import koleo, masked_latent, sampled_info_nce, sinkhorn, soft_cross_entropy, sparse_adam, word_pairs
from fastssl.testing.compile import offline

from .compile import TARGET, families, verdict

F32, BF16 = torch.float32, torch.bfloat16
NUM_SMS = 132


def new(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype)


def rows(n, k, dtype=BF16, bias=0, weight=False, heads=None, probabilities=False, gradient=True):
    """Row against row; bias: rows of it."""
    student, teacher = new(n, k, dtype=dtype), new(n, k, dtype=dtype)
    biases, weights = new(bias, k, dtype=F32) if bias else None, new(n, dtype=F32) if weight else None
    args = teacher, biases, weights, torch.ones(2), heads or [k], n, 1, False, probabilities, gradient
    return lambda: soft_cross_entropy.soft_cross_entropy_fwd(student, *args)


def crops(s, t, batch, k, bias=0, inner=1, dtype=BF16, probabilities=False):
    student, teacher = new(s * batch, k, dtype=dtype), new(t * batch, k, dtype=dtype)
    biases = new(bias, k, dtype=F32) if bias else None
    args = teacher, biases, None, torch.ones(2), [k], batch, inner, True, probabilities, True
    return lambda: soft_cross_entropy.soft_cross_entropy_fwd(student, *args)


def balanced(n, k, groups=1, dtype=BF16):
    x, temperature = new(n, k, dtype=dtype), torch.ones(1)

    def call():
        sinkhorn.sinkhorn_start(x, temperature, 1, groups)
        sinkhorn.sinkhorn_step(x, new(groups, k, dtype=F32), temperature, [k], 1)

    return call


def scaled(n, k, dtype=BF16):
    return lambda: soft_cross_entropy.soft_cross_entropy_scale(new(n, k, dtype=dtype), torch.ones(n))


def latents(p, tokens, width, loss, dtype=BF16, weight=False, normalize=True):
    """Half of the tokens of as many samples, with the gradient in the same pass, of the rows and of the mean."""
    pred, target, ids = (
        new(p, tokens // 2, width, dtype=dtype),
        new(p, tokens, width, dtype=dtype),
        torch.zeros(p, tokens // 2).long(),
    )
    args = pred, target, ids, new(p, tokens // 2, dtype=F32) if weight else None, loss, 0.5, normalize, 1e-5, True

    def call():
        masked_latent.masked_latent_one_pass(*args)
        for grad in (torch.ones(()), torch.ones(p, tokens // 2)):
            masked_latent.masked_latent_bwd(grad, *args)

    return call


def neighbours(n, width, topk=1, dtype=BF16):
    """Rows at unit length, their terms, and the gradients of the rows before and after."""
    ids = torch.zeros(n, topk).long()

    def call():
        x, norm = koleo.koleo_rows(new(n, width, dtype=dtype), 1e-8)
        terms, distance = koleo.koleo_fwd(x, ids, 1e-8)
        koleo.koleo_bwd(terms, x, ids, distance, norm, 1e-8, n, dtype)
        koleo.koleo_bwd(torch.ones(1, 1).expand(n, topk), x, ids, distance, None, 1e-8, n, F32)

    return call


def sampled(queries, keys, width, drawn=100, dtype=BF16):
    """Losses with and without the gradient of the queries, and the gradient of the table."""
    query, table, index = new(queries, width, dtype=dtype), new(keys, width, dtype=dtype), torch.zeros(queries, drawn + 1).long()

    def call():
        for gradient in (False, True):
            loss, _, lse, cosines, _ = sampled_info_nce.sampled_info_nce_fwd(query, table, index, torch.ones(()), 1e-8, gradient)
        sampled_info_nce.sampled_info_nce_bwd(loss, query, table, index, torch.ones(()), lse, cosines, 1e-8)

    return call


def words(width, inputs=1, targets=6, dtype=BF16):
    """Losses of 4096 pairs, whole and sparse gradients of both tables, and a step of Adam on the rows of one."""
    tables = [new(50_000, width, dtype=dtype) for _ in range(2)]
    ids = [torch.arange(4096 * n).view(4096, n) for n in (inputs, targets)]

    def call():
        loss, h, pull, slope = word_pairs.word_pairs_fwd(*tables, *ids)
        word_pairs.word_pairs_table(h, slope, loss, ids[1], 50_000, dtype)
        rows, values = word_pairs.word_pairs_rows(pull, None, loss, ids[0], 50_000, dtype)
        sparse_adam.sparse_adam_(
            tables[0], *(new(50_000, width, dtype=dtype) for _ in range(2)), rows, values, 0.1, 0.9, 0.99, 1e-8
        )

    return call


#: Calls whose launches are compiled, and those that are compiled with --all alone.
CALLS = {
    "iBOT": rows(4915, 65536, bias=1, weight=True),
    "plain": rows(4915, 65536),
    "given": rows(4096, 32000, probabilities=True),
    "float32": rows(4096, 32000, F32, bias=1),
    "few": rows(128, 65536, bias=1),
    "DINO": crops(10, 2, 64, 65536, bias=1),
    "DINO without centre": crops(10, 2, 64, 65536),
    "Sinkhorn": balanced(4915, 65536),
    "Sinkhorn by position": balanced(4096, 16384, groups=16, dtype=F32),
    "scale": scaled(4096, 32000),
    "odd": rows(4915, 3001, bias=1),
    "ones": rows(1, 1, F32, bias=1),
    "V-JEPA": latents(24, 2048, 1024, "smooth_l1", weight=True),
    "I-JEPA": latents(128, 196, 1280, "l1"),
    "KoLeo": neighbours(256, 1024),
    "wav2vec 2.0": sampled(2100, 2100, 256),
    "word2vec": words(304),
}
MORE = {
    "loss": rows(4915, 65536, bias=1, gradient=False),
    "groups": rows(4096, 16384, bias=16),
    "heads": rows(4096, 3072, heads=[1024, 2048]),
    "few given": rows(64, 65536, F32, probabilities=True),
    "SwAV": crops(8, 2, 64, 3000),
    "crops of 3": crops(3, 3, 64, 65536, bias=2, inner=64),
    "crops of given": crops(4, 4, 64, 65536, probabilities=True),
    "float32 crops": crops(10, 2, 64, 65536, bias=1, dtype=F32),
    "one crop": crops(1, 6, 64, 65536),
    "Sinkhorn of few": balanced(128, 65536),
    "odd Sinkhorn": balanced(130, 3001, dtype=F32),
    "scale float32": scaled(5, 77, F32),
    "narrow latents": latents(24, 196, 192, "l2", weight=True),
    "wide latents": latents(24, 196, 8192, "power", weight=True),
    "float32 latents": latents(24, 196, 768, "power", F32, normalize=False),
    "odd latents": latents(24, 196, 1001, "smooth_l1", weight=True),
    "odd wide latents": latents(3, 9, 5001, "power", F32, weight=True),
    "one latent": latents(1, 2, 1, "l1", F32),
    "narrow KoLeo": neighbours(4096, 128, topk=3),
    "wide KoLeo": neighbours(64, 8192),
    "odd KoLeo": neighbours(33, 1001, topk=2, dtype=F32),
    "odd wide KoLeo": neighbours(9, 5001),
    "wav2vec 2.0 in float32": sampled(2100, 4300, 768, dtype=F32),
    "wide sampled": sampled(64, 64, 4096),
    "odd sampled": sampled(33, 7, 1001, 3, F32),
    "odd wide sampled": sampled(9, 5, 5001, 3),
    "CBOW in float32": words(128, inputs=10, dtype=F32),
    "wide words": words(8192, inputs=2, targets=3),
    "odd words": words(100, inputs=3),
    "odd wide words": words(5001, targets=2, dtype=F32),
}
#: Calls whose rows do not begin at multiples of 16 bytes.
UNEVEN = {"odd", "ones", "odd Sinkhorn", "scale float32", "odd latents", "odd wide latents", "one latent"}
UNEVEN |= {"odd KoLeo", "odd wide KoLeo", "odd sampled", "odd wide sampled", "odd words", "odd wide words"}


def cases(everything: bool) -> list[bool]:
    good = []
    for family in families("launched", sys.argv):
        seen: set[str] = set()
        with offline(TARGET[family], NUM_SMS) as found:
            for name, call in (CALLS | MORE if everything else CALLS).items():
                found.clear()
                call()
                for kernel, compiled in found:
                    if compiled.hash not in seen:
                        good.append(verdict(f"{name}: {kernel}", compiled, TARGET[family], False))
                    seen.add(compiled.hash)
                if name not in UNEVEN and not any("ld.global.v4" in compiled.asm["ptx"] for _, compiled in found):
                    print(f"{name}: no thread reads 16 bytes at a time")
                    good.append(False)
        forget()
        good += in_place(family)
    return good


def in_place(family: int) -> list[bool]:
    """The gradient may be written over the logits because each reading loads an element in one place of the code: student and
    teacher, twice. Triton repeats a load where threads outnumber the elements of a tile."""
    good = []
    with offline(TARGET[family], NUM_SMS) as found:
        for n, k in ((1, 1), (300, 37), (300, 3000), (4915, 65536)):
            found.clear()
            student, teacher = new(n, k), new(n, k)
            args = teacher, None, None, torch.ones(2), [k], n, 1, False, False
            soft_cross_entropy.soft_cross_entropy_in_place(student, *args)
            ((name, compiled),) = found
            loads = re.findall(r"tt\.load.*tensor<\d+x\d+x\d+x!tt\.ptr<bf16>", compiled.asm["ttgir"])
            if len(loads) != 4:
                print(f"{name} of {n} x {k} sm_{TARGET[family]}: {len(loads)} loads of elements, not 4")
            good.append(len(loads) == 4)
    forget()
    return good


def forget() -> None:
    """Functions keep what was compiled for one architecture until their caches are emptied."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("fastssl.kernels"):
            for function in vars(module).values():
                if isinstance(function, JITFunction):
                    function.device_caches.clear()


if __name__ == "__main__":
    sys.exit(not all(cases("--all" in sys.argv)))
