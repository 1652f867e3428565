"""Rows of the losses."""

import math

import torch
from torch import Tensor

from fastssl import functional
from fastssl.functional import RowStats

from . import loss_truths as truths
from .table import Case, Maker
from .values import tensors

REDUCTIONS = ("mean", "sum", "none")
DISTANCES = ("euclidean", "squared", "cosine")


def _scalar(m: Maker, *values: float):
    """A number, or a tensor of one element that may want a gradient."""
    value = m.choice(values)
    if m.random() < 0.5:
        return value
    dtype = m.choice((torch.float32, torch.float32, torch.float64))
    return torch.full(m.choice(((), (1,), (1, 1))), value, dtype=dtype).requires_grad_(m.random() < 0.5)


def _two(m: Maker, first: str, second: str, least: int = 1) -> dict:
    n, d = m.choice((least, 3, 8, 17)), m.choice((1, 4, 9))
    n = max(n, least)
    return {first: m.leaf(n, d), second: m.leaf(n, d)}


def _ids(m: Maker, n: int) -> Tensor:
    return m.integers(0, 4, n).to(m.choice((torch.int64, torch.int64, torch.int32, torch.uint8)))


def _views(m: Maker) -> dict:
    return _two(m, "z0", "z1") | {
        "temperature": _scalar(m, 0.1, 0.5, 1.0),
        "normalize": m.random() < 0.7,
        "reduction": m.choice(REDUCTIONS),
        "group": None,
    }


def _dcl(m: Maker) -> dict:
    weights = m.maybe(lambda own, other: 1.0 + 0.1 * (own.detach() * other.detach()).sum(1))
    return _views(m) | _two(m, "z0", "z1", 2) | {"weight_fn": weights}


def _hard(m: Maker) -> dict:
    made = _views(m) | _two(m, "z0", "z1", 2) | {"tau_plus": m.choice((0.0, 0.1)), "beta": m.choice((0.0, 0.5, 1.0))}
    return {name: value for name, value in made.items() if name != "group"}


def _debiased(m: Maker) -> dict:
    return {name: value for name, value in _hard(m).items() if name != "beta"}


def _targets(m: Maker) -> dict:
    return _two(m, "p", "z") | {"reduction": m.choice(REDUCTIONS)}


def _lse(m: Maker) -> dict:
    x, ids = m.leaf(m.choice((1, 3, 17)), m.choice((1, 4, 9))), m.random() < 0.5
    y = x if m.random() < 0.3 else m.leaf(m.choice((1, 5, 20)), x.shape[1])
    return {
        "x": x,
        "y": y,
        "scale": _scalar(m, 0.5, 1.0, -2.0, 0.0),
        "x_id": _ids(m, len(x)) if ids else None,
        "y_id": _ids(m, len(y)) if ids and y is not x else None,
        "y_bias": m.maybe(m.leaf(len(y)), 0.3),
    }


def _passages(m: Maker) -> dict:
    """Queries and passages. No margin is a number that similarities of simple rows differ by."""
    n, count, d = m.choice((1, 2, 9)), m.choice((1, 2, 4)), m.choice((1, 4, 9))
    lists = m.random() < 0.6  # one query's passages after the other
    rows = n * count + m.choice((0, 3))
    target = count if lists else m.integers(0, rows, n)
    several = not lists and rows >= 2 * n and m.random() < 0.4
    if several:
        target = torch.arange(rows - 2 * n, rows).flip(0).reshape(n, 2)
        target[:, 1][m.integers(0, 2, n) == 0] = -1
    return {
        "query": m.leaf(n, d),
        "positive_key": m.leaf(rows, d),
        "temperature": _scalar(m, 0.1, 0.5, 1.0),
        "reduction": m.choice(REDUCTIONS),
        "normalize": m.random() < 0.7,
        "return_stats": m.random() < 0.3,
        "ids": None if lists or several else m.maybe(_ids(m, rows), 0.4),
        "target": target,
        "margin": m.choice((None, 0.3337, -0.1234)),
        "relative_margin": m.choice((None, None, -0.0537)),
        "spare_hard_negatives": lists and m.random() < 0.3,
        "query_query": m.random() < 0.3,
        "doc_query": not several and m.random() < 0.3,
        "doc_doc": False if several else m.choice((False, False, True, "other") if lists else (False, True)),
    }


def _info_nce(m: Maker) -> dict:
    if m.random() < 0.3:
        return _passages(m)
    made = _two(m, "query", "positive_key")
    n, d = made["query"].shape
    kind, mode = m.choice(("batch", "batch", "symmetric", "negatives", "hard")), m.choice(("unpaired", "paired"))
    count = m.choice((1, 5))
    hard = kind == "hard" and m.random() < 0.4
    return made | {
        "negative_keys": None if kind != "negatives" else m.leaf(*((count, d) if mode == "unpaired" else (n, count, d))),
        "temperature": _scalar(m, 0.1, 0.5, 1.0),
        "reduction": m.choice(REDUCTIONS),
        "negative_mode": mode,
        "normalize": m.random() < 0.7,
        "symmetric": kind == "symmetric",
        "return_stats": m.random() < 0.3,
        "group": None,
        "ids": None if kind == "negatives" or hard else m.maybe(_ids(m, n), 0.4),
        "hard_negative_keys": m.leaf(n if hard else count, d) if kind == "hard" else None,
        "hard_negative_weight": 0.7 if hard else 0.0,
        "label_smoothing": m.choice((0.0, 0.0, 0.1)),
    }


def _seen_stats(found, arguments: dict):
    """Without the ranks, which ties decide, and with the mean of no negatives left out."""
    if not arguments.get("return_stats"):
        return found
    parts = (found[0], found[1].loss, found[1].positive, found[1].negative) if isinstance(found[1], RowStats) else found
    if any(not t.isfinite().all() for t in tensors(arguments) if t.is_floating_point()):  # in a column that a row excludes, too
        return parts[:3]
    return (*parts[:3], torch.nan_to_num(parts[3], 0.0, math.inf, -math.inf))


def _moco(m: Maker) -> dict:
    made, layout = _two(m, "query", "key"), m.choice(("dk", "kd"))
    queue = m.rows(m.choice((1, 5, 40)), made["query"].shape[1])
    return made | {
        "queue": queue if layout == "kd" else queue.T.contiguous(),
        "temperature": _scalar(m, 0.1, 0.5, 1.0),
        "layout": layout,
        "return_stats": m.random() < 0.3,
        "reduction": m.choice(REDUCTIONS),
    }


def _moco_v3(m: Maker) -> dict:
    return _two(m, "query", "key") | {"temperature": _scalar(m, 0.2, 1.0), "normalize": m.random() < 0.7}


def _clip(m: Maker) -> dict:
    made = _two(m, "image", "text")
    return made | {
        "logit_scale": _scalar(m, 1.0, 10.0, 0.0),
        "logit_bias": m.maybe(_scalar(m, 0.0, -1.0), 0.3),
        "normalize": m.random() < 0.5,
        "group": None,
        "ids": m.maybe(_ids(m, len(made["image"]))),
        "label_smoothing": m.choice((0.0, 0.0, 0.1)),
    }


def _siglip(m: Maker) -> dict:
    made = _two(m, "image", "text")
    ids = m.maybe(_ids(m, len(made["image"])))
    return made | {
        "logit_scale": _scalar(m, 1.0, 10.0, 0.0),
        "logit_bias": _scalar(m, 0.0, -10.0),
        "normalize": m.random() < 0.5,
        "group": None,
        "image_id": ids,
        "text_id": None if ids is None else m.maybe(_ids(m, len(ids))),
        "weighting": m.choice(("none", "balanced")),
    }


def _sup_con(m: Maker) -> dict:
    b, v, d = m.choice((1, 3, 8)), m.choice((1, 2, 3)), m.choice(((1,), (5,), (2, 3)))
    kind = m.choice(("labels", "labels", "mask", "neither"))
    if b * v == 1:
        b = 2
    return {
        "features": m.leaf(b, v, *d),
        "labels": _ids(m, b) if kind == "labels" else None,
        "temperature": _scalar(m, 0.1, 0.5, 1.0),
        "base_temperature": m.choice((None, None, 0.07)),
        "normalize": m.random() < 0.6,
        "group": None,
        "mask": (torch.rand(b, b, generator=m.generator) < 0.5).float() if kind == "mask" else None,
        "contrast_mode": m.choice(("all", "one")),
        "reduction": m.choice(REDUCTIONS),
    }


def _squares(*embeddings: Tensor) -> Tensor:
    return sum(e.to(torch.promote_types(e.dtype, torch.float32)).square().sum() for e in embeddings)


def _matryoshka(m: Maker) -> dict:
    dims = m.choice(([1], [2, 4], (4, 1)))
    return {
        "loss": _squares,
        "first": m.leaf(3, 4),
        "second": m.leaf(3, 5),
        "dims": dims,
        "weights": m.maybe([0.5 + i for i in range(len(dims))]),
    }


def _call_matryoshka(function, arguments: dict):
    rest = dict(arguments)
    return function(rest.pop("loss"), rest.pop("first"), rest.pop("second"), **rest)


def _neighbor(m: Maker) -> dict:
    n, k, d = m.choice((1, 5)), m.choice((1, 4, 30)), m.choice((1, 6))
    return {"query": m.rows(n, d), "bank": m.rows(k, d), "exclude": m.maybe(m.integers(-1, k if k > 1 else 0, n))}


def _seen_neighbor(found, arguments: dict):
    """How similar the found rows are: equal ones may be told apart by rounding alone."""
    if not bool(arguments["query"].isfinite().all() and arguments["bank"].isfinite().all()):
        return found * 0
    return (arguments["query"].double() * arguments["bank"].double()[found]).sum(1)


# --- the older losses --------------------------------------------------------------------------------------------------------


def _contrastive(m: Maker) -> dict:
    made = _two(m, "a", "b")
    label = m.integers(0, 2, len(made["a"]))
    return made | {
        "label": label.bool() if m.random() < 0.5 else label,
        "margin": m.choice((0, 1.0, 2.5)),
        "reduction": m.choice(REDUCTIONS),
    }


def _features(m: Maker) -> dict:
    n = m.choice((1, 4, 12))
    return {"features": m.leaf(n, m.choice((1, 3, 6))), "labels": _ids(m, n)}


def _pairs(m: Maker) -> dict:
    made = {"pos_margin": m.choice((0, 0.2)), "neg_margin": m.choice((1.0, 2.5)), "distance": m.choice(DISTANCES)}
    return _features(m) | made | {"reduction": m.choice(("nonzero", "mean", "sum"))}


def _triplet(m: Maker) -> dict:
    made = _two(m, "anchor", "positive")
    made["negative"] = m.leaf(*made["anchor"].shape)
    how = {"margin": m.choice((None, 0.3)), "distance": m.choice(DISTANCES), "soft": m.random() < 0.5}
    return made | how | {"reduction": m.choice(REDUCTIONS)}


def _triplet_batch(m: Maker) -> dict:
    made = {"margin": m.choice((None, 0.3)), "mining": m.choice(("all", "hard")), "distance": m.choice(DISTANCES)}
    return _features(m) | made | {"soft": m.random() < 0.5, "reduction": m.choice(("nonzero", "mean", "sum"))}


def _n_pair(m: Maker) -> dict:
    return _two(m, "anchor", "positive") | {"l2_reg": m.choice((0, 0.02)), "reduction": m.choice(REDUCTIONS)}


def _sampled(m: Maker, keys: str, index: str) -> dict:
    made = _two(m, "query", "positive_key")
    n, d = made["query"].shape
    kind, count = m.choice(("shared", "own", "index")), m.choice((1, 4))
    made[keys] = m.leaf(*{"shared": (count, d), "own": (n, count, d), "index": (7, d)}[kind])
    made["temperature"] = _scalar(m, 0.5, 1.0, 2.0)
    made[index] = m.integers(0, 7, n, count) if kind == "index" else None
    return made


def _nce(m: Maker) -> dict:
    made = _sampled(m, "noise_keys", "noise_index")
    n, known = len(made["query"]), m.random() < 0.4
    count = made["noise_keys"].shape[-2] if made["noise_index"] is None else made["noise_index"].shape[1]
    shared = made["noise_keys"].dim() == 2 and made["noise_index"] is None
    return made | {
        "n": None if known else m.choice((1, 100)),
        "log_noise_pos": -m.rows(n).abs() if known else None,
        "log_noise_neg": -m.rows(*((count,) if shared else (n, count))).abs() if known else None,
        "log_z": _scalar(m, 0.0, 1.0),
        "reduction": m.choice(REDUCTIONS),
    }


def _nce_log_z(m: Maker) -> dict:
    made = _sampled(m, "noise_keys", "noise_index")
    return {name: made[name] for name in ("query", "noise_keys", "temperature", "noise_index")} | {"n": m.choice((1, 100))}


def _sampling(m: Maker) -> dict:
    return _sampled(m, "negative_keys", "negative_index") | {"reduction": m.choice(REDUCTIONS)}


def _sampled_info_nce(m: Maker) -> dict:
    queries, count, width = m.choice((1, 3, 8)), m.choice((1, 2, 7)), m.choice((1, 4, 9))
    return {
        "query": m.leaf(queries, width),
        "keys": m.leaf(count, width),
        "positive_index": m.integers(0, count, queries).to(m.choice((torch.int64, torch.int32))),
        "negative_index": m.integers(0, count, queries, m.choice((1, 4))).to(m.choice((torch.int64, torch.int32))),
        "temperature": _scalar(m, 0.1, 1.0, -0.5),
        "reduction": m.choice(REDUCTIONS),
    }


def _soft_nearest(m: Maker) -> dict:
    made = {"temperature": _scalar(m, 0.5, 2.0), "distance": m.choice(DISTANCES), "reduction": m.choice(REDUCTIONS)}
    return _features(m) | made


def _alignment(m: Maker) -> dict:
    return _two(m, "x", "y") | {"alpha": m.choice((1, 2.0, 3.0)), "reduction": m.choice(REDUCTIONS)}


def _uniformity(m: Maker) -> dict:
    return {"x": m.leaf(m.choice((2, 9)), m.choice((1, 4))), "t": _scalar(m, 0.5, 2.0)}


CASES = [
    Case("nt_xent", functional.nt_xent, _views, truths.nt_xent),
    Case("dcl", functional.dcl, _dcl, truths.dcl, through=("weight_fn",), rough=("temperature: denormals",)),
    Case("hard_nt_xent", functional.hard_nt_xent, _hard, truths.hard_nt_xent, rough=("beta: odd",)),
    Case("debiased_nt_xent", functional.debiased_nt_xent, _debiased, truths.debiased_nt_xent),
    Case("negative_cosine", functional.negative_cosine, _targets, truths.negative_cosine),
    Case("byol_loss", functional.byol_loss, _targets, truths.byol_loss),
    Case("similarity_lse", functional.similarity_lse, _lse, truths.similarity_lse),
    Case("info_nce", functional.info_nce, _info_nce, truths.info_nce, _seen_stats),
    Case("moco_loss", functional.moco_loss, _moco, truths.moco_loss, _seen_stats),
    Case("moco_v3_loss", functional.moco_v3_loss, _moco_v3, truths.moco_v3_loss),
    Case("clip_loss", functional.clip_loss, _clip, truths.clip_loss),
    Case("siglip_loss", functional.siglip_loss, _siglip, truths.siglip_loss),
    Case("sup_con", functional.sup_con, _sup_con, truths.sup_con, rough=("base_temperature: odd",)),
    Case(
        "matryoshka",
        functional.matryoshka,
        _matryoshka,
        truths.matryoshka,
        call=_call_matryoshka,
        names=("embeddings",),
        through=("loss",),
    ),
    Case("nearest_neighbor", functional.nearest_neighbor, _neighbor, truths.nearest_neighbor, _seen_neighbor),
    Case("contrastive", functional.contrastive, _contrastive, truths.contrastive),
    Case("contrastive_pairs", functional.contrastive_pairs, _pairs, truths.contrastive_pairs),
    Case("triplet", functional.triplet, _triplet, truths.triplet),
    Case("triplet_batch", functional.triplet_batch, _triplet_batch, truths.triplet_batch, rough=("huge",)),
    Case("lifted_structured", functional.lifted_structured, _features, truths.lifted_structured),
    Case("n_pair", functional.n_pair, _n_pair, truths.n_pair),
    Case("nce", functional.nce, _nce, truths.nce),
    Case("nce_log_z", functional.nce_log_z, _nce_log_z, truths.nce_log_z),
    Case("negative_sampling", functional.negative_sampling, _sampling, truths.negative_sampling),
    Case("sampled_info_nce", functional.sampled_info_nce, _sampled_info_nce, truths.sampled_info_nce),
    Case("soft_nearest_neighbor", functional.soft_nearest_neighbor, _soft_nearest, truths.soft_nearest_neighbor),
    Case("alignment", functional.alignment, _alignment, truths.alignment),
    Case("uniformity", functional.uniformity, _uniformity, truths.uniformity, rough=("large", "thrice", "t: odd")),
]
