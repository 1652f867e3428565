"""The scales of losses over several processes, under DistributedDataParallel's mean of gradients.

Each of W processes encodes its own rows by one linear map, computes its loss and its gradients, and the gradients are averaged over
processes as DistributedDataParallel does. The reference is one process on the joined batch. A row of the table is

    loss        mean over processes / reference
    encoder     projection of the averaged gradient of the map on the reference's
    residual    the part of the averaged gradient that is no multiple of the reference's, relative to it
    scale       averaged gradient of the scale (1 / temperature) / reference; None where the library has a number there

The libraries' values are those of their published code, measured with it. They differ by powers of W between libraries that report
the same loss, and where a library leaves terms out, the gradient points elsewhere.
"""

import datetime
import importlib.util
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import distributed

import fastssl
from fastssl.compat import (
    contrastors,
    flag_embedding,
    grad_cache,
    lightly,
    mocov3,
    ms_swift,
    open_clip,
    sentence_transformers,
    solo,
    tevatron,
)
from fastssl.distributed import Ranks
from fastssl.functional import clip_loss, dcl, info_nce, moco_v3_loss, nt_xent, siglip_loss, sup_con
from tests.support.processes import run_processes

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES, GROUP, WIDTH = 6, 3, 16
TEMPERATURE = 0.3
BIASED = "another direction"


def batch(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs of the queries (world QUERIES, WIDTH), and of GROUP passages for each, the first of which is the positive."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(world * QUERIES, WIDTH, dtype=torch.float64, generator=generator)
    noise = torch.randn(world * QUERIES * GROUP, WIDTH, dtype=torch.float64, generator=generator)
    return query, 0.4 * query.repeat_interleave(GROUP, 0) + noise


def weights() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The map of the encoder, the scale and the bias."""
    generator = torch.Generator().manual_seed(1)
    linear = torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator) / 4
    return tuple(t.requires_grad_() for t in (linear, *torch.tensor([1 / TEMPERATURE, -2.0], dtype=torch.float64)))


def encoded(linear, query, passages):
    return [F.normalize(x @ linear, dim=1) for x in (query, passages)]


# --- one process on the joined batch: q (N, D), p (N GROUP, D), of which losses of pairs take the first of each group -------------


def two_views(q, p, scale, bias, decoupled=False):
    z, n = torch.cat([q, p[::GROUP]]), len(q)
    s = (scale * z @ z.T).masked_fill(torch.eye(2 * n, dtype=torch.bool), -torch.inf)
    positive = s[torch.arange(2 * n), torch.arange(2 * n).roll(n)]
    left_out = torch.eye(n, dtype=torch.bool).repeat(2, 2) if decoupled else torch.zeros(2 * n, 2 * n, dtype=torch.bool)
    return (s.masked_fill(left_out, -torch.inf).logsumexp(1) - positive).mean()


def pairs(q, p, scale, bias):
    s = scale * q @ p[::GROUP].T
    return (F.cross_entropy(s, torch.arange(len(q))) + F.cross_entropy(s.T, torch.arange(len(q)))) / 2


def sigmoid_pairs(q, p, scale, bias):
    sign = 2 * torch.eye(len(q), dtype=torch.float64) - 1
    return F.softplus(-sign * (scale * q @ p[::GROUP].T + bias)).sum() / len(q)


def own_key(q, p, scale, bias):
    return F.cross_entropy(scale * q @ p[::GROUP].T, torch.arange(len(q)))


def constant_key(q, p, scale, bias):
    return 2 * TEMPERATURE * own_key(q, p.detach(), scale, bias)


def passages(q, p, scale, bias):
    return F.cross_entropy(scale * q @ p.T, torch.arange(len(q)) * GROUP)


def all_terms(q, p, scale, bias):
    """Queries and positives against all passages and queries: GTE's loss."""
    n, p = len(q), p.unflatten(0, (-1, GROUP)).transpose(0, 1).flatten(0, 1)
    own, positive = torch.eye(n, dtype=torch.bool), p[:n]
    parts = q @ p.T, (q @ q.T).masked_fill(own, -torch.inf), positive @ q.T, positive @ p.T
    parts = [*parts[:3], parts[3].masked_fill(own.repeat(1, GROUP), -torch.inf)]
    return (torch.cat([20.0 * s for s in parts], 1).logsumexp(1) - 20.0 * (q * positive).sum(1)).mean()


# --- the same by each drop-in, in one of several processes -----------------------------------------------------------------------


def ours_of_views(cls, q, p, scale, bias, gather=True):
    return cls(TEMPERATURE, gather_distributed=gather)(q, p[::GROUP])


def ours_of_pairs(q, p, scale, bias, **options):
    place = {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
    return open_clip.ClipLoss(**options, **place)(q, p[::GROUP], scale)


def ours_of_sigmoid_pairs(q, p, scale, bias):
    place = {"rank": distributed.get_rank(), "world_size": distributed.get_world_size()}
    return open_clip.SigLipLoss(**place)(q, p[::GROUP], scale, bias)


def solo_simclr(q, p, scale, bias):
    indexes = torch.arange(QUERIES).repeat(2) + QUERIES * distributed.get_rank()
    return solo.simclr_loss_func(torch.cat([q, p[::GROUP]]), indexes, TEMPERATURE)


def metric_learning(q, p, scale, bias, efficient=False):
    from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

    from fastssl.compat import pml

    labels = torch.arange(QUERIES).repeat(2) + QUERIES * distributed.get_rank()
    return DistributedLossWrapper(pml.NTXentLoss(TEMPERATURE), efficient=efficient)(torch.cat([q, p[::GROUP]]), labels)


def cos_sim(a, b): ...


cos_sim.__module__ = "sentence_transformers.util"


def sentences(q, p, scale, bias, directions=("query_to_doc",)):
    options = {"scale": 20.0, "similarity_fct": cos_sim, "gather_across_devices": True, "directions": directions}
    options |= {"partition_mode": "joint", "hardness_mode": None, "hardness_strength": 0.0}
    columns = [q, *p.unflatten(0, (-1, GROUP)).unbind(1)]
    return sentence_transformers.compute_loss_from_embeddings(SimpleNamespace(**options), columns, None)


class EncoderOutput(dict):
    """In the place of tevatron's."""

    def __init__(self, **entries):
        super().__init__(entries)


class EncoderModel:
    """In the place of tevatron's, of representations as they are."""

    training = is_ddp = True
    encode_query = encode_passage = staticmethod(lambda features: features["x"])

    def _dist_gather_tensor(self, rows):
        everyone = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, rows.detach())
        everyone[distributed.get_rank()] = rows
        return torch.cat(everyone)

    def compute_similarity(self, q_reps, p_reps): ...
    def compute_loss(self, scores, target): ...


def ours_of_tevatron(q, p, scale, bias):
    model = EncoderModel()
    model.world_size, model.temperature = distributed.get_world_size(), 1 / scale
    return tevatron.forward(model, {"x": q}, {"x": p})["loss"]


def ours_of_flag_embedding(q, p, scale, bias):
    model = type("Model", (), {name: partial(len) for name in flag_embedding.PLAIN})
    for name, place in flag_embedding.PLAIN.items():
        method = lambda self: None  # noqa: E731
        method.__module__ = f"{place}modeling"
        setattr(model, name, method)
    model.temperature = 1 / scale
    return flag_embedding.compute_cross_device_neg_loss(model(), q, p)[1]


def ours_of_contrastors(q, p, scale, bias):
    return contrastors.clip_loss(q, p, lambda x: x * scale, gather_enabled=True)


def ours_of_ms_swift(q, p, scale, bias):
    rows = torch.cat([q[:, None], p.unflatten(0, (-1, GROUP))], 1).flatten(0, 1)
    labels = torch.tensor([1, *[0] * (GROUP - 1)]).repeat(QUERIES)
    with warnings.catch_warnings():
        warnings.simplefilter("error", fastssl.LocalRowsWarning)  # it has gathered the rows by itself
        return ms_swift.call(SimpleNamespace(is_megatron=False), {"last_hidden_state": rows}, labels)


def exact(loss, q, p, scale, bias):
    """Ours with ``group=``, of pairs and a temperature."""
    return loss(q, p[::GROUP], temperature=1 / scale, group=Ranks())


def ours_of_views_of_samples(q, p, scale, bias):
    return sup_con(torch.stack([q, p[::GROUP]], 1), temperature=1 / scale, group=Ranks())


def ours_of_grad_cache(q, p, scale, bias):
    return grad_cache.DistributedContrastiveLoss(n_hard_negatives=GROUP - 1)(q * scale, p)


#: name -> (drop-in, reference, what the row is at W processes: loss, encoder, residual, scale)
TABLE = {
    "nt_xent": (partial(exact, nt_xent), two_views, lambda w: (1, 1, 0, 1)),
    "dcl": (partial(exact, dcl), partial(two_views, decoupled=True), lambda w: (1, 1, 0, 1)),
    "info_nce": (partial(exact, info_nce), own_key, lambda w: (1, 1, 0, 1)),
    "moco_v3_loss": (
        partial(exact, moco_v3_loss),
        lambda q, p, s, b: 2 / s * own_key(q, p.detach(), s, b),
        lambda w: (1, 1, 0, 1),
    ),
    "clip_loss": (lambda q, p, s, b: clip_loss(q, p[::GROUP], s, group=Ranks()), pairs, lambda w: (1, 1, 0, 1)),
    "siglip_loss": (
        lambda q, p, s, b: siglip_loss(q, p[::GROUP], s, b, group=Ranks(transport="ring")),
        sigmoid_pairs,
        lambda w: (1, 1, 0, 1),
    ),
    "sup_con": (ours_of_views_of_samples, two_views, lambda w: (1, 1, 0, 1)),
    "lightly NTXentLoss": (partial(ours_of_views, lightly.NTXentLoss), two_views, lambda w: (1, 1, 0, None)),
    "lightly DCLLoss": (partial(ours_of_views, lightly.DCLLoss), partial(two_views, decoupled=True), lambda w: (1, 1, 0, None)),
    "lightly, local": (partial(ours_of_views, lightly.NTXentLoss, gather=False), two_views, lambda w: BIASED),
    "open_clip, local and gradient": (
        partial(ours_of_pairs, local_loss=True, gather_with_grad=True),
        pairs,
        lambda w: (1, 1, 0, 1),
    ),
    "open_clip, gradient": (partial(ours_of_pairs, gather_with_grad=True), pairs, lambda w: (1, 1, 0, 1)),
    "open_clip, default": (ours_of_pairs, pairs, lambda w: (1, 1 / w, 0, 1)),
    "open_clip, local": (partial(ours_of_pairs, local_loss=True), pairs, lambda w: BIASED),
    "open_clip SigLIP": (ours_of_sigmoid_pairs, sigmoid_pairs, lambda w: (1, 1, 0, 1)),
    "solo SimCLR": (solo_simclr, two_views, lambda w: (1, 1, 0, None)),
    "solo MoCo v3": (
        lambda q, p, s, b: solo.mocov3_loss_func(q, p[::GROUP], TEMPERATURE),
        constant_key,
        lambda w: (1, 1, 0, None),
    ),
    "solo NNCLR": (lambda q, p, s, b: solo.nnclr_loss_func(q, p[::GROUP], TEMPERATURE), own_key, lambda w: (1, 1, 0, None)),
    "MoCo v3": (
        lambda q, p, s, b: mocov3.contrastive_loss(SimpleNamespace(T=TEMPERATURE), q, p[::GROUP]),
        constant_key,
        lambda w: (1, 1, 0, None),
    ),
    "pytorch-metric-learning": (metric_learning, two_views, lambda w: (w, 1, 0, None)),
    "pytorch-metric-learning, efficient": (partial(metric_learning, efficient=True), two_views, lambda w: BIASED),
    "sentence-transformers": (sentences, lambda q, p, s, b: passages(q, p, 20.0, b), lambda w: (1, 1, 0, None)),
    "sentence-transformers, all directions": (
        partial(sentences, directions=sentence_transformers.DIRECTIONS),
        all_terms,
        lambda w: (1, 1, 0, None),
    ),
    "tevatron": (ours_of_tevatron, passages, lambda w: (w, 1, 0, w)),
    "FlagEmbedding": (ours_of_flag_embedding, passages, lambda w: (1, 1 / w, 0, 1)),
    "ms-swift": (ours_of_ms_swift, lambda q, p, s, b: passages(q, p, 10.0, b), lambda w: (1, 1, 0, None)),
    "GradCache": (ours_of_grad_cache, passages, lambda w: (1, 1 / w, 0, 1 / w)),  # its scale can only be a part of x
    "contrastors": (ours_of_contrastors, passages, lambda w: (w, w, 0, w)),
}


def gradients(loss, params):
    return torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)


def row(call, reference, rank: int, world: int) -> tuple[float, float, float, float]:
    """Loss, encoder gradient, residual and scale gradient, relative to the reference."""
    query, passage = batch(world)
    linear, scale, bias = params = weights()
    want = reference(*encoded(linear, query, passage), scale, bias)
    of_map, of_scale, _ = gradients(want, params)
    mine = [part.chunk(world)[rank] for part in (query, passage)]
    loss = call(*encoded(linear, *mine), scale, bias)
    averaged = [loss.detach().clone(), *gradients(loss, params)]
    for value in averaged:
        distributed.all_reduce(value)
        value /= world
    encoder = (averaged[1] * of_map).sum() / of_map.square().sum()
    residual = (averaged[1] - encoder * of_map).norm() / of_map.norm()
    return tuple(x.item() for x in (averaged[0] / want, encoder, residual, averaged[2] / of_scale))


def check_table(rank: int, world: int) -> None:
    wrong = []
    for name, (call, reference, expected) in TABLE.items():
        if name.startswith("pytorch-metric") and importlib.util.find_spec("pytorch_metric_learning") is None:
            continue
        got, want = row(call, reference, rank, world), expected(world)
        if want == BIASED:
            right = got[2] > 0.02
        else:
            right = all(w is None or abs(g - w) < 1e-9 for g, w in zip(got, want, strict=True))
        if not right:
            wrong.append(f"{name}, W = {world}: {got} in place of {want}")
    assert not wrong, "\n".join(wrong)


def check_four_and_two(rank: int, world: int, folder: str) -> None:
    """Four processes, then two worlds of two: the drop-ins look at all processes, as the originals do."""
    warnings.simplefilter("ignore")
    check_table(rank, world)
    distributed.barrier()
    distributed.destroy_process_group()
    store = f"file://{folder}/store_of_two_{rank // 2}"
    distributed.init_process_group("gloo", store, datetime.timedelta(seconds=150), 2, rank % 2)
    check_table(rank % 2, 2)


def test_gradient_scales_of_four_and_of_two_processes(tmp_path):
    run_processes(check_four_and_two, 4, tmp_path, str(tmp_path))
