"""The contrastive steps before and after fastssl: SimCLR, CLIP (both with gradient caching) and MoCo v2.

Imports ``clock``, ``common`` and ``peers``.
"""

import copy
import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers import moco_repository
from benchmarks.steps.clock import Clock
from benchmarks.steps.common import (
    AFTER,
    BEFORE,
    Pair,
    Setting,
    Side,
    cached_step,
    channels_last,
    compare,
    finish_step,
    library,
    pictures,
    resnet,
    rows_of_pairs,
)
from fastssl.functional import clip_loss, moco_loss, nt_xent, queue_push_
from fastssl.methods import VisionTransformer
from fastssl.methods._common import ProjectionHead
from fastssl.momentum import EMA
from fastssl.testing import contrastive

#: Width of the embeddings.
DIM = 128
SIMCLR_TEMPERATURE, MOCO_TEMPERATURE, MOMENTUM = 0.1, 0.2, 0.999
CLIP_DIM, CLIP_SCALE, VOCABULARY = 512, 1 / 0.07, 49408


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of both sides. Its steps are small, so that the few measured ones do not change the model much."""
    return torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4, fused=True)


def simclr(at: Setting, clock: Clock) -> Pair:
    """The step of SimCLR: ResNet-50, a head of two layers, NT-Xent over 2B embeddings (B = batch)."""
    name, plain = library(
        "lightly",
        "nt_xent",
        {"temperature": SIMCLR_TEMPERATURE},
        partial(contrastive.nt_xent, temperature=SIMCLR_TEMPERATURE),
    )
    ours = partial(nt_xent, temperature=SIMCLR_TEMPERATURE)
    backbone, width = resnet(at)
    encoder = channels_last(nn.Sequential(backbone, ProjectionHead(width, width, DIM)), at)
    views = pictures(at, 2 * at.size.batch, 0, channels_last=True)

    def side(uses: str, loss: Callable[[Tensor, Tensor], Tensor]) -> Side:
        own = copy.deepcopy(encoder)
        optimizer = sgd(own)

        def step() -> Tensor:
            value = cached_step(at, clock, [(own, views)], lambda z: loss(*z.chunk(2)))
            finish_step(clock, optimizer)
            return value

        return Side({"loss": uses}, step)

    eager = partial(contrastive.nt_xent, temperature=SIMCLR_TEMPERATURE)
    check = partial(compare, at, rows_of_pairs(at, DIM, ("z0", "z1")), (), eager, plain, ours)
    return Pair({BEFORE: side(name, plain), AFTER: side("fastssl.functional.nt_xent", ours)}, ("loss",), check)


class TextTower(nn.Module):
    """CLIP's text encoder (Radford et al. 2021, section 2.4): tokens (N, L) int64 -> (N, out), from the last token."""

    def __init__(self, length: int, width: int, depth: int, heads: int, out: int):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.pos_embed = nn.Parameter(0.01 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.projection = nn.Linear(width, out, bias=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.pos_embed
        return self.projection(self.blocks(x, mask=self.mask, is_causal=True)[:, -1])


class _CLIP(nn.Module):
    """The two encoders of CLIP and the logarithm of the scale."""

    def __init__(self, at: Setting):
        super().__init__()
        if at.size.small:
            vit, self.text = VisionTransformer(at.size.image, 16, 32, 1, 2), TextTower(at.size.tokens, 32, 1, 2, CLIP_DIM)
        else:
            vit = VisionTransformer(at.size.image, 32, 768, 12, 12, class_token=True)
            self.text = TextTower(at.size.tokens, 512, 12, 8, CLIP_DIM)
        self.image = nn.Sequential(vit, nn.Linear(vit.num_features, CLIP_DIM, bias=False))
        self.log_scale = nn.Parameter(torch.tensor(math.log(CLIP_SCALE)))


def clip(at: Setting, clock: Clock) -> Pair:
    """The step of CLIP: ViT-B/32 and a text transformer of width 512 with 12 layers, the loss over B pairs (B = batch)."""
    name, of_units = library("open_clip", "clip", {}, contrastive.clip)

    def plain(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return of_units(F.normalize(image, dim=1), F.normalize(text, dim=1), scale)

    def ours(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return clip_loss(image, text, scale, normalize=True)

    model = _CLIP(at).to(at.device)
    images = pictures(at, at.size.batch, 0)
    generator = torch.Generator(at.device).manual_seed(2)
    tokens = torch.randint(VOCABULARY, (at.size.batch, at.size.tokens), generator=generator, device=at.device)

    def side(uses: str, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Side:
        own = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(own.parameters(), lr=1e-5, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)

        def step() -> Tensor:
            towers = [(own.image, images), (own.text, tokens)]
            value = cached_step(at, clock, towers, lambda image, text: loss(image, text, own.log_scale.exp()))
            finish_step(clock, optimizer)
            return value

        return Side({"loss": uses}, step)

    scale = torch.tensor(CLIP_SCALE, device=at.device)
    unit = contrastive.unit

    def eager(image: Tensor, text: Tensor) -> Tensor:
        return contrastive.clip(unit(image), unit(text), scale.to(image.dtype))

    losses = (partial(plain, scale=scale), partial(ours, scale=scale))
    check = partial(compare, at, rows_of_pairs(at, CLIP_DIM, ("image", "text")), (), eager, *losses)
    return Pair({BEFORE: side(name, plain), AFTER: side("fastssl.functional.clip_loss", ours)}, ("loss",), check)


def _plain_contrast(q: Tensor, k: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and keys of unit length, as the MoCo repository computes them; q, k (N, D), queue (D, K)."""
    q, keys = F.normalize(q, dim=1), F.normalize(k, dim=1)
    return moco_repository.loss(q, keys, queue, MOCO_TEMPERATURE), keys


def _our_contrast(q: Tensor, k: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    q, keys = (F.normalize(rows.float(), dim=1).to(queue.dtype) for rows in (q, k))
    return moco_loss(q, keys, queue, MOCO_TEMPERATURE), keys


def moco(at: Setting, clock: Clock) -> Pair:
    """The step of MoCo v2: ResNet-50 and its teacher, a head of two layers, a queue of K keys.

    Before, the queue is float32, and autocast rounds it at each step; after, it is stored in the dtype of autocast.
    """
    backbone, width = resnet(at)
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, DIM))
    encoder = channels_last(nn.Sequential(backbone, head), at)
    views = [pictures(at, at.size.batch, seed, channels_last=True) for seed in range(2)]
    queue = F.normalize(torch.randn(DIM, at.size.queue, device=at.device), dim=0)

    def side(uses: dict[str, str], own: nn.Module, teacher: nn.Module, keys: Tensor, move, contrast, push) -> Side:
        optimizer, ptr = sgd(own), torch.zeros(1, dtype=torch.int64, device=at.device)

        def part_step(view0: Tensor, view1: Tensor, share: float) -> Tensor:
            clock.switch("encoder")
            with at.autocast():
                q = own(view0)
                with torch.no_grad():
                    k = teacher(view1)
                clock.border(q, "encoder", "loss")
                loss, new = contrast(q, k, keys)
            with clock.aside("queue"):
                push(keys, ptr, new)
            (loss * share).backward()
            return loss.detach()

        def step() -> Tensor:
            clock.switch("momentum")
            move()
            parts = list(zip(*(view.split(at.size.micro) for view in views), strict=True))
            losses = [part_step(*part, len(part[0]) / at.size.batch) for part in parts]
            finish_step(clock, optimizer)
            return torch.stack(losses).mean()

        return Side(uses, step)

    own, teacher = copy.deepcopy(encoder), copy.deepcopy(encoder).requires_grad_(False)
    averages = {"ema": list(teacher.parameters()), "params": list(own.parameters())}
    move = torch.no_grad()(moco_repository.PEER.forms["ema"](MOMENTUM)(averages))
    plain = {"momentum": "one parameter at a time", "loss": "copy of the queue, whole logits", "queue": "pointer read by the host"}
    before = side(plain, own, teacher, queue.clone(), move, _plain_contrast, moco_repository.enqueue)
    ema = EMA(encoder, MOMENTUM, buffers="skip")
    uses = {"momentum": "fastssl.momentum.EMA", "loss": "fastssl.functional.moco_loss", "queue": "fastssl.functional.queue_push_"}
    after = side(uses, encoder, ema.module, queue.to(at.dtype), lambda: ema.update(encoder), _our_contrast, queue_push_)

    def eager(q: Tensor, k: Tensor) -> Tensor:
        return contrastive.moco(contrastive.unit(q), contrastive.unit(k), queue.to(q.dtype), MOCO_TEMPERATURE)

    losses = (
        lambda q, k: _plain_contrast(q, k, queue)[0],
        lambda q, k: _our_contrast(q, k, queue.to(at.dtype))[0],
    )
    check = partial(compare, at, rows_of_pairs(at, DIM, ("q", "k")), ("k",), eager, *losses)
    return Pair({BEFORE: before, AFTER: after}, ("momentum", "loss", "queue"), check)
