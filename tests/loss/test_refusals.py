"""Every contrastive and older loss refuses bad input with a message: function, argument, expected, got."""

import math

import numpy
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastssl import functional, loss
from fastssl.functional import (
    alignment,
    contrastive,
    contrastive_pairs,
    lifted_structured,
    n_pair,
    nce,
    nce_log_z,
    negative_sampling,
    soft_nearest_neighbor,
    triplet,
    triplet_batch,
    uniformity,
)

A, B, C = torch.randn(4, 3), torch.randn(4, 3), torch.randn(5, 3)
FEATURES, QUEUE, LABELS = torch.randn(4, 2, 3), torch.randn(3, 7), torch.arange(4)
with FakeTensorMode():
    FAKE, FAKE_LABELS = torch.ones(1), torch.arange(4)
F_ = functional
REFUSED = [
    (lambda: F_.info_nce(A, C), ValueError, "same shape"),
    (lambda: F_.info_nce(A, B.half()), TypeError, "same dtype"),
    (lambda: F_.info_nce(A, B, temperature=0.0), ValueError, "temperature"),
    (lambda: F_.info_nce(A, B, temperature=math.nan), ValueError, "temperature"),
    (lambda: F_.info_nce(A[:0], B[:0]), ValueError, "at least one row"),
    (lambda: F_.info_nce(A, B, C[:, :2]), ValueError, "same width"),
    (lambda: F_.info_nce(A, B, C, negative_mode="paired"), ValueError, "paired negative_keys"),
    (lambda: F_.info_nce(A, B, C, negative_mode="every"), ValueError, "negative_mode"),
    (lambda: F_.info_nce(A, B, C, symmetric=True), ValueError, "symmetric=True"),
    (lambda: F_.info_nce(A, B, C, ids=torch.arange(4)), ValueError, "ids cannot be given"),
    (lambda: F_.info_nce(A, B, ids=torch.arange(5)), ValueError, "ids must have shape"),
    (lambda: F_.info_nce(A, B, ids=torch.rand(4)), TypeError, "integer"),
    (lambda: F_.info_nce(A, B, label_smoothing=1.0), ValueError, "label_smoothing"),
    (lambda: F_.info_nce(A, B, hard_negative_weight=1.0), ValueError, "hard_negative_weight"),
    (lambda: F_.info_nce(A, B, hard_negative_keys=C, hard_negative_weight=math.inf), ValueError, "finite"),
    (lambda: F_.info_nce(A, B, group=object()), TypeError, "info_nce: group must be a process group"),
    (lambda: F_.info_nce(A.int(), B.int()), TypeError, "float32"),
    (lambda: F_.clip_loss(A, C, 1.0), ValueError, "same shape"),
    (lambda: F_.clip_loss(A, B, math.inf), ValueError, "logit_scale"),
    (lambda: F_.clip_loss(A, B, torch.ones(2)), ValueError, "logit_scale"),
    (lambda: F_.clip_loss(A, B, 1.0, ids=torch.arange(3)), ValueError, "ids"),
    (lambda: F_.siglip_loss(A, B, 1.0, None), TypeError, "logit_bias"),
    (lambda: F_.siglip_loss(A, B, 1.0, math.nan), ValueError, "logit_bias"),
    (lambda: F_.siglip_loss(A, B, 1.0, 0.0, text_id=torch.arange(4)), ValueError, "without image_id"),
    (lambda: F_.siglip_loss(A, B, 1.0, 0.0, weighting="soft"), ValueError, "weighting"),
    (lambda: F_.negative_cosine(A, C), ValueError, "negative_cosine: p and z must have the same shape"),
    (lambda: F_.negative_cosine(A, B.half()), TypeError, "same dtype"),
    (lambda: F_.negative_cosine(A, B.to("meta")), ValueError, "same device"),
    (lambda: F_.negative_cosine(A, [1.0]), TypeError, "z must be a tensor"),
    (lambda: F_.negative_cosine(A[0], B[0]), ValueError, "2-D"),
    (lambda: F_.negative_cosine(A, B, reduction="all"), ValueError, "reduction"),
    (lambda: F_.byol_loss(A, C), ValueError, "byol_loss: p and z must have the same shape"),
    (lambda: F_.byol_loss(A[:0], B[:0]), ValueError, "at least one row"),
    (lambda: F_.byol_loss(A.int(), B.int()), TypeError, "float32"),
    (lambda: F_.moco_loss(A, B, QUEUE.T), ValueError, "keys of width 3"),
    (lambda: F_.moco_loss(A, B, QUEUE, layout="kk"), ValueError, "layout"),
    (lambda: F_.moco_loss(A, B, QUEUE[:, :0]), ValueError, "at least one row"),
    (lambda: F_.moco_loss(A, C, QUEUE), ValueError, "same shape"),
    (lambda: F_.moco_loss(A, B, QUEUE, 0.0), ValueError, "temperature"),
    (lambda: F_.sup_con(A), ValueError, "features must be"),
    (lambda: F_.sup_con(FEATURES, torch.arange(3)), ValueError, "labels"),
    (lambda: F_.sup_con(FEATURES, torch.arange(4), mask=torch.ones(4, 4)), ValueError, "both given"),
    (lambda: F_.sup_con(FEATURES, mask=torch.ones(4, 3)), ValueError, "mask must have shape"),
    (lambda: F_.sup_con(FEATURES, contrast_mode="two"), ValueError, "contrast_mode"),
    (lambda: F_.sup_con(FEATURES, temperature=0), ValueError, "temperature"),
    (lambda: F_.hard_nt_xent(A, B, tau_plus=1.0), ValueError, "tau_plus"),
    (lambda: F_.hard_nt_xent(A, B, beta=-1.0), ValueError, "beta"),
    (lambda: F_.debiased_nt_xent(A[:1], B[:1]), ValueError, "at least 2 rows"),
    (lambda: F_.nearest_neighbor(A, QUEUE), ValueError, "same width"),
    (lambda: F_.nearest_neighbor(A, C, exclude=[1]), TypeError, "nearest_neighbor: exclude must be a tensor"),
    (
        lambda: F_.nearest_neighbor(A, C, exclude=torch.full((4,), 5)),
        ValueError,
        "exclude must be rows of bank, from 0 to 4",
    ),
    (lambda: F_.nearest_neighbor(A, C[:1], exclude=torch.tensor([-1, -1, 0, -1])), ValueError, "exclude must leave a row of bank"),
    (lambda: F_.moco_v3_loss(A, None), TypeError, "moco_v3_loss: key must be a tensor"),
    (lambda: F_.moco_v3_loss(A, C), ValueError, "moco_v3_loss: query and key must have the same shape"),
    (lambda: F_.moco_v3_loss(A, B, 1e-40), ValueError, "moco_v3_loss: temperature must be at least"),
    (lambda: F_.matryoshka(F_.nt_xent, A, B, dims=3), TypeError, "matryoshka: dims must be a sequence of numbers, got int"),
    (lambda: F_.matryoshka(F_.nt_xent, A, B, dims=[4]), ValueError, "matryoshka: dims must be whole numbers from 1 to D = 3"),
    (lambda: F_.matryoshka(lambda a, b: (a, b), A, B, dims=[2]), TypeError, "matryoshka: loss must return a tensor, got tuple"),
    (lambda: F_.matryoshka(None, A, B, dims=[2]), TypeError, "matryoshka: loss must be a function, got NoneType"),
    (lambda: F_.matryoshka(F_.nt_xent, A, [B], dims=[2]), TypeError, r"matryoshka: embeddings\[1\] must be a tensor"),
    (lambda: F_.matryoshka(F_.nt_xent, A, B, dims=[2], weights=["1"]), TypeError, r"matryoshka: weights\[0\] must be a number"),
    (lambda: F_.dcl(A, B, weight_fn=3), TypeError, "dcl: weight_fn must be a function or None, got int"),
    (lambda: F_.sup_con(FEATURES, mask=torch.full((4, 4), math.nan)), ValueError, "sup_con: mask must be finite and at least 0"),
    (lambda: F_.sup_con(FEATURES, mask=torch.full((4, 4), math.inf)), ValueError, "sup_con: mask must be finite and at least 0"),
    (lambda: F_.sup_con(FEATURES, mask=torch.full((4, 4), -1)), ValueError, "sup_con: mask must be finite and at least 0"),
    (lambda: F_.sup_con(FEATURES, mask=torch.ones(4, 4) + 0j), TypeError, "sup_con: mask must be real"),
    (lambda: F_.sup_con(FEATURES, mask=[1]), TypeError, "sup_con: mask must be a tensor"),
    (lambda: F_.sup_con(FEATURES, ignore_label=-1), ValueError, "sup_con: ignore_label was given without labels"),
    (lambda: F_.sup_con(FEATURES, torch.arange(4), ignore_label=True), TypeError, "sup_con: ignore_label must be a whole number"),
    (lambda: F_.info_nce(A, B, [C], negative_mode="paired"), TypeError, "info_nce: negative_keys must be a tensor"),
    (lambda: F_.nt_xent(A, B, 10**400), ValueError, "nt_xent: temperature must be finite and not 0, got an integer beyond float64"),
    (lambda: F_.info_nce(A, B, label_smoothing=10**5000), ValueError, "info_nce: label_smoothing must be in"),
    (lambda: F_.clip_loss(A, B, -(10**400)), ValueError, "clip_loss: logit_scale must be finite"),
    (lambda: F_.nt_xent(A, B, torch.ones(1).to(torch.float8_e4m3fn)), ValueError, "nt_xent: temperature must be a number or"),
    (lambda: F_.nt_xent(A, B, reduction=torch.ones(2)), TypeError, "nt_xent: reduction must be one of .*, got Tensor"),
    (lambda: F_.moco_loss(A, B, QUEUE, layout=["dk"]), TypeError, "moco_loss: layout must be one of 'dk', 'kd', got list"),
    (lambda: F_.triplet(A, B, A, distance=numpy.ones(2)), TypeError, "triplet: distance must be one of .*, got ndarray"),
    (lambda: F_.nt_xent(A, B, normalize=1), TypeError, "nt_xent: normalize must be True or False, got int"),
    (lambda: F_.moco_loss(A, B, QUEUE, return_stats=torch.ones(2)), TypeError, "moco_loss: return_stats must be True or False"),
    (lambda: F_.triplet_batch(A, LABELS, soft="no"), TypeError, "triplet_batch: soft must be True or False, got str"),
    (lambda: F_.nt_xent(A.to_sparse(), B), TypeError, "nt_xent: z0 must be a dense tensor, got torch.sparse_coo"),
    (lambda: F_.clip_loss(A, B.to_mkldnn(), 1.0), TypeError, "clip_loss: text must be a dense tensor, got torch._mkldnn"),
    (lambda: F_.sup_con(FEATURES.to_sparse()), TypeError, "sup_con: features must be a dense tensor"),
    (lambda: F_.nce(A, B, C.to_sparse(), n=9), TypeError, "nce: noise_keys must be a dense tensor"),
    (lambda: F_.contrastive(A, B, LABELS.to_sparse()), TypeError, "contrastive: label must be a dense tensor"),
    (lambda: F_.nt_xent(torch.nested.nested_tensor([A, B]), B), TypeError, "nt_xent: z0 must be a dense tensor, got a nested one"),
    (lambda: F_.nt_xent(A, B, FAKE), ValueError, "nt_xent: the embeddings and temperature must both be fake tensors or both have"),
    (lambda: F_.triplet_batch(A, FAKE_LABELS), ValueError, "triplet_batch: features and labels must both be fake tensors"),
    (lambda: loss.NTXentLoss("0.5"), TypeError, "NTXentLoss: temperature must be a number"),
    (lambda: loss.NTXentLoss(0.5, 2.5), TypeError, "NTXentLoss: memory_bank_size must be K or"),
    (lambda: loss.NTXentLoss()(A, C), ValueError, "NTXentLoss: out0 and out1 must have the same shape"),
    (lambda: loss.DCLWLoss(sigma=0), ValueError, "DCLWLoss: sigma must not be 0"),
    (lambda: F_.nearest_neighbor(A, C, exclude=torch.arange(4).int()), TypeError, "exclude must have dtype torch.int64"),
]


@pytest.mark.parametrize("call, error, words", REFUSED, ids=[str(k) for k in range(len(REFUSED))])
def test_refused_with_a_message(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- the older losses ---

X, Y = torch.randn(4, 3), torch.tensor([0, 0, 1, 1])
BAD = {
    "shapes": (ValueError, r"contrastive: a and b must have the same shape \(B, D\)", lambda: contrastive(X, X[:, :2], Y)),
    "label length": (ValueError, r"contrastive: label must have shape \(4,\).*\(3,\)", lambda: contrastive(X, X, Y[:3])),
    "label dtype": (
        TypeError,
        "contrastive: label must have an integer dtype, got torch.float32",
        lambda: contrastive(X, X, X[:, 0]),
    ),
    "label list": (TypeError, r"contrastive: label must be a tensor", lambda: contrastive(X, X, [0, 1, 0, 1])),
    "margin": (ValueError, "contrastive: margin must be at least 0, got -1", lambda: contrastive(X, X, Y, -1)),
    "margin NaN": (ValueError, "contrastive: margin must be at least 0, got nan", lambda: contrastive(X, X, Y, math.nan)),
    "margin text": (TypeError, "contrastive: margin must be a number, got str", lambda: contrastive(X, X, Y, "1")),
    "reduction": (
        ValueError,
        "contrastive: reduction must be one of 'mean', 'sum', 'none'",
        lambda: contrastive(X, X, Y, 1.0, "avg"),
    ),
    "pairs margin": (ValueError, "contrastive_pairs: neg_margin must be at least 0", lambda: contrastive_pairs(X, Y, 0.0, -0.5)),
    "pairs reduction": (
        ValueError,
        "one of 'nonzero', 'mean', 'sum', got 'none'",
        lambda: contrastive_pairs(X, Y, reduction="none"),
    ),
    "features": (ValueError, r"contrastive_pairs: features must be 2-D \(N, D\)", lambda: contrastive_pairs(X[0], Y)),
    "features type": (TypeError, "contrastive_pairs: features must be a tensor", lambda: contrastive_pairs([[1.0]], Y)),
    "features dtype": (TypeError, "triplet_batch: features must be float32.*got torch.int64", lambda: triplet_batch(X.long(), Y)),
    "empty": (ValueError, "lifted_structured: features must have at least one row", lambda: lifted_structured(X[:0], Y[:0])),
    "labels length": (ValueError, r"triplet_batch: labels must have shape \(4,\)", lambda: triplet_batch(X, Y[:3])),
    "labels shape": (ValueError, r"lifted_structured: labels must have shape \(4,\)", lambda: lifted_structured(X, Y[:, None])),
    "labels dtype": (TypeError, "labels must have an integer dtype, got torch.bool", lambda: soft_nearest_neighbor(X, Y > 0)),
    "labels device": (ValueError, "must be on the same device, got cpu and meta", lambda: triplet_batch(X, Y.to("meta"))),
    "distance": (
        ValueError,
        "triplet: distance must be one of 'euclidean', 'squared', 'cosine'",
        lambda: triplet(X, X, X, distance="l1"),
    ),
    "triplet margin": (ValueError, "triplet: margin must be at least 0", lambda: triplet(X, X, X, -0.1)),
    "triplet shapes": (ValueError, "triplet: anchor and negative must have the same shape", lambda: triplet(X, X, X[:3])),
    "triplet dtypes": (TypeError, "triplet: anchor and positive must have the same dtype", lambda: triplet(X, X.double(), X)),
    "mining": (
        ValueError,
        "triplet_batch: mining must be one of 'all', 'hard', got 'semi'",
        lambda: triplet_batch(X, Y, mining="semi"),
    ),
    "n_pair": (ValueError, "n_pair: anchor and positive must have the same shape", lambda: n_pair(X, X[:2])),
    "l2_reg": (ValueError, "n_pair: l2_reg must be at least 0", lambda: n_pair(X, X, -0.1)),
    "temperature 0": (ValueError, "nce: temperature must be finite and not 0, got 0", lambda: nce(X, X, X, 0, n=9)),
    "temperature NaN": (ValueError, "soft_nearest_neighbor: temperature must be", lambda: soft_nearest_neighbor(X, Y, math.nan)),
    "no noise": (ValueError, "nce: the noise must be n .* or log_noise_pos and log_noise_neg, got neither", lambda: nce(X, X, X)),
    "both noises": (ValueError, "got n and log_noise_pos", lambda: nce(X, X, X, n=9, log_noise_pos=X[:, 0])),
    "half a noise": (ValueError, "got log_noise_pos$", lambda: nce(X, X, X, log_noise_pos=X[:, 0])),
    "noise size": (ValueError, "nce: n must be at least 1, got 0", lambda: nce(X, X, X, n=0)),
    "noise shape": (
        ValueError,
        r"nce: log_noise_neg must have shape \(4,\), got \(4, 3\)",
        lambda: nce(X, X, X, log_noise_pos=X[:, 0], log_noise_neg=X),
    ),
    "noise type": (
        TypeError,
        "log_noise_pos must be a float tensor",
        lambda: nce(X, X, X, log_noise_pos=1.0, log_noise_neg=X[:, 0]),
    ),
    "log_z": (ValueError, "nce: log_z must be finite, got inf", lambda: nce(X, X, X, n=9, log_z=math.inf)),
    "keys width": (ValueError, r"nce: noise_keys must be .* N = 4 and D = 3, got shape \(4, 2\)", lambda: nce(X, X, X[:, :2], n=9)),
    "keys rows": (ValueError, r"got shape \(3, 4, 3\)", lambda: negative_sampling(X, X, X.expand(3, 4, 3))),
    "no keys": (ValueError, r"got shape \(0, 3\)", lambda: negative_sampling(X, X, X[:0])),
    "keys dtype": (TypeError, "negative_sampling: query and negative_keys must have", lambda: negative_sampling(X, X, X.double())),
    "keys type": (TypeError, "negative_sampling: negative_keys must be a tensor", lambda: negative_sampling(X, X, None)),
    "own keys and index": (ValueError, "noise_keys must be", lambda: nce(X, X, X.expand(4, 4, 3), n=9, noise_index=Y[:, None])),
    "index dtype": (TypeError, "noise_index must be an integer tensor", lambda: nce(X, X, X, n=9, noise_index=X)),
    "index shape": (ValueError, r"noise_index must have shape \(4, M\)", lambda: nce(X, X, X, n=9, noise_index=Y)),
    "index beyond": (
        ValueError,
        "nce: noise_index must be rows of noise_keys, from 0 to 3, got 4 to 4",
        lambda: nce(X, X, X, n=9, noise_index=torch.full((4, 2), 4)),
    ),
    "index below": (
        ValueError,
        "negative_sampling: negative_index must be rows of negative_keys, from 0 to 3, got -1 to -1",
        lambda: negative_sampling(X, X, X, negative_index=torch.full((4, 2), -1)),
    ),
    "log_z rows": (ValueError, r"nce_log_z: query must be 2-D", lambda: nce_log_z(X[0], X, n=9)),
    "alpha": (ValueError, "alignment: alpha must be above 0, got 0", lambda: alignment(X, X, 0)),
    "alignment": (ValueError, "alignment: x and y must be on the same device", lambda: alignment(X, X.to("meta"))),
    "t": (ValueError, "uniformity: t must be finite and not 0", lambda: uniformity(X, 0.0)),
    "t tensor": (ValueError, "uniformity: t must be finite and not 0", lambda: uniformity(X, torch.tensor(math.nan))),
    "one row": (ValueError, "uniformity: x must have at least 2 rows", lambda: uniformity(X[:1])),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_a_message(name):
    error, words, call = BAD[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "name, call",
    {
        "nt_xent": lambda a: F_.nt_xent(a, B),
        "dcl": lambda a: F_.dcl(a, B, normalize=False),
        "hard_nt_xent": lambda a: F_.hard_nt_xent(a, B),
        "info_nce": lambda a: F_.info_nce(a, B),
        "moco_v3_loss": lambda a: F_.moco_v3_loss(a, B),
        "clip_loss": lambda a: F_.clip_loss(a, a + B, 1.0),
        "siglip_loss": lambda a: F_.siglip_loss(a, B, 1.0, 0.0),
        "sup_con": lambda a: F_.sup_con(a[:, None], torch.arange(4) % 2),
        "byol_loss": lambda a: F_.byol_loss(a, B),
        "n_pair": lambda a: F_.n_pair(a, a + B),
        "uniformity": lambda a: F_.uniformity(a),
        "NTXentLoss": lambda a: loss.NTXentLoss()(a, B),
    }.items(),
)
def test_second_derivatives_and_torch_func_are_refused_by_the_name_of_the_function(name, call):
    a = A.clone().requires_grad_()
    with pytest.raises(NotImplementedError, match=f"^{name}: second derivatives are not implemented"):
        torch.autograd.grad(torch.autograd.grad(call(a), a, create_graph=True)[0].square().sum(), a)
    with pytest.raises(NotImplementedError, match=rf"^{name}: torch\.func"):
        torch.func.grad(call)(A)
