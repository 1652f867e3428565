"""Recipes of the methods that read text: CLIP and SigLIP on captioned crops and SimCSE on sentences, scored by retrieval, and BERT
on sentences, scored by the words that it names."""

from dataclasses import replace
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fastssl.methods import BERT, CLIP, SigLIP, SimCSE
from fastssl.train import Recipe, TrainConfig, UsageError

TEXT_ENCODERS = ("bert", "text")
OWN_DATA = "not here, but with fastssl.methods in a loop of your own, see docs/methods.md"


def load_captions(config: TrainConfig):
    from fastssl.train.captions import captions

    if config.data != "captions":
        raise UsageError(f"--data: {config.method} learns from captions, got '{config.data}'; pairs of your own: {OWN_DATA}")
    return captions(config.image_size or 32)


def encoders(config: TrainConfig, data) -> tuple[nn.Module, nn.Module]:
    """An image encoder by name, and a two-layer text transformer whose mean over words is the feature."""
    from fastssl.train.backbones import build_backbone
    from fastssl.train.text import MeanText, TextTransformer

    image_encoder = build_backbone(config.backbone, data.image_size, patch_size=config.patch_size)
    return image_encoder, MeanText(TextTransformer(data.vocabulary, width=64, length=32))


def one_view(config: TrainConfig, data) -> nn.Module:
    """CLIP's augmentation: a crop, here also mirrored; colours stay, captions name them."""
    from fastssl.train.augment import TwoViews

    return TwoViews(data.image_size, min_scale=config.min_scale, strength=0.0, mirror=data.mirror, colour=False)


def pairs(module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """A view of each image, one of its picture's captions, and the picture: what has its caption too is no negative."""
    images, labels = batch[:2]
    table = module.data.train_tokens.to(labels.device)
    chosen = torch.randint(table.shape[1], labels.shape, device=labels.device)
    return module.views.one(images), table[labels, chosen], labels


def image_space(method: nn.Module) -> nn.Module:
    return nn.Sequential(method.image_encoder, nn.Flatten(), method.image_projection)


@torch.no_grad()
def caption_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    """Test crops against test captions: the share of crops whose nearest caption is one of their picture's, and of the ten
    crops nearest to a caption the share that is of its picture."""
    from fastssl.train.evaluate import embed

    image, label = embed(image_space(method), data.test, data.image_size, device=device, workers=workers)
    training = method.training
    method.eval()
    text = method.embed_text(data.test_tokens.flatten(0, 1).to(device)).float()
    method.train(training)
    owner = torch.arange(len(data.class_names), device=device).repeat_interleave(data.test_tokens.shape[1])
    similarity = nn.functional.normalize(image, dim=1) @ text.T
    nearest = label[similarity.topk(10, dim=0).indices]
    return {
        "to_text": (owner[similarity.argmax(1)] == label).float().mean().item(),
        "to_image": (nearest == owner).float().mean().item(),
    }


def caption_points(method: nn.Module, data, *, device, workers: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    from fastssl.train.evaluate import embed

    return *embed(image_space(method), data.test, data.image_size, device=device, workers=workers), data.class_names


def load_sentences(config: TrainConfig):
    """Pieces of words for BERT, whole words for the built-in encoder, which needs neither transformers nor tokenizers."""
    from fastssl.train.sentences import sentences

    if config.data not in ("sentences", "triples"):
        known = f"known: sentences, triples (supervised); text of your own: {OWN_DATA}"
        raise UsageError(f"--data: unknown data set '{config.data}'; {known}")
    if config.backbone not in TEXT_ENCODERS:
        raise UsageError(f"--backbone: unknown encoder '{config.backbone}' of text; known: {', '.join(TEXT_ENCODERS)}")
    if config.backbone == "bert" and not find_spec("transformers"):
        raise UsageError("--backbone bert: needs transformers (pip install transformers); the built-in encoder is --backbone text")
    return sentences(config.data, pieces=config.backbone == "bert")


def simcse(config: TrainConfig, data) -> nn.Module:
    from fastssl.train.text import TextTransformer, small_bert

    make = small_bert if config.backbone == "bert" else TextTransformer
    return SimCSE(make(data.vocabulary, width=64, depth=1), config.pooler, config.temperature)


def sentence_arguments(module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, mask, and of triples the paragraph: its sentences are not each other's negatives."""
    tokens, groups = batch
    return tokens, (tokens != 0).to(torch.int64), groups if tokens.ndim == 3 else None


@torch.no_grad()
def embed_sentences(method: nn.Module, tokens: Tensor, device) -> Tensor:
    """tokens (N, L) -> unit rows (N, F) on ``device``, in evaluation mode."""
    training = method.training
    method.eval()
    parts = [method.embed(part, (part != 0).to(torch.int64)).float() for part in tokens.to(device).split(256)]
    method.train(training)
    return nn.functional.normalize(torch.cat(parts), dim=1)


def recalls(similarity: Tensor, target: Tensor, name: str) -> dict[str, float]:
    """Share of rows (N, M) whose ``target`` (N,) is first, and among the first ten."""
    rank = (similarity > similarity.gather(1, target[:, None])).sum(1)
    return {f"{name}{k}": (rank < k).float().mean().item() for k in (1, 10)}


def sentence_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    """Among all test sentences: the one that every third word is of, and the one that follows in the paragraph."""
    bank, part = (embed_sentences(method, tokens, device) for tokens in (data.test.tokens, data.parts))
    first, second = data.neighbours.to(device).T
    others = (bank[first] @ bank.T).scatter(1, first[:, None], -2.0)
    own = torch.arange(len(bank), device=device)
    return recalls(part @ bank.T, own, "part") | recalls(others, second, "next")


def sentence_points(method: nn.Module, data, *, device, workers: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The sentences of the twelve longest test documents."""
    longest = data.test.groups.bincount().topk(min(12, len(data.documents))).indices
    kept = torch.isin(data.test.groups, longest)
    labels = (data.test.groups[kept][:, None] == longest).int().argmax(1)
    names = tuple(data.documents[i] for i in longest.tolist())
    return embed_sentences(method, data.test.tokens[kept], device), labels.to(device), names


def load_words(config: TrainConfig):
    """Sentences as whole words."""
    if config.data != "sentences":
        raise UsageError(f"--data: bert learns from sentences, got '{config.data}'; text of your own: {OWN_DATA}")
    return load_sentences(config)


def bert(config: TrainConfig, data) -> nn.Module:
    """One token more than the tokeniser has: the mask."""
    from fastssl.train.text import SPECIAL

    if config.mask_ratio == 1:
        raise UsageError("--mask-ratio 1.0: must be below 1")
    special, mask = tuple(range(len(SPECIAL))), data.vocabulary
    return BERT(mask + 1, mask_id=mask, special_ids=special, width=96, length=24, probability=config.mask_ratio)


@torch.no_grad()
def word_accuracy(method: nn.Module, data, *, device) -> dict[str, float]:
    """Share of hidden tokens of the test sentences that are named, and that of always naming the commonest training token; the
    same tokens are hidden each time."""
    counts = data.train.tokens.flatten().bincount(minlength=method.vocab_size)
    counts[method.special_ids.cpu()] = 0
    commonest = counts.argmax().item()
    training, named, common, total = method.training, 0, 0, 0
    method.eval()
    for seed, part in enumerate(data.test.tokens.to(device).split(256)):
        logits, labels = method.predict(part, seed=seed)
        named += (logits.argmax(1) == labels).sum().item()
        common += (labels == commonest).sum().item()
        total += len(labels)
    method.train(training)
    return {"accuracy": named / max(1, total), "commonest": common / max(1, total)}


def word_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    return word_accuracy(method, data, device=device)


CLIP_ = Recipe(
    load=load_captions,
    build=lambda config, data: CLIP(*encoders(config, data), config.projection_dim, temperature=config.temperature),
    augment=one_view,
    arguments=pairs,
    monitor=caption_scores,
    points=caption_points,
    scores={"to_text": ("acc@1", "image to caption, acc@1"), "to_image": ("P@10", "caption to image, P@10")},
    options=("backbone", "image_size", "patch_size", "min_scale", "temperature", "projection_dim"),
    defaults={"data": "captions", "epochs": 4, "min_scale": 0.5, "temperature": 0.07},
    help={"data": f"captions (of crops of the pictures of photos); pairs of your own: {OWN_DATA}"},
    loss="CLIP",
    heading="test crops, test captions",
    unit="images",
)
SIGLIP = replace(
    CLIP_,
    build=lambda config, data: SigLIP(*encoders(config, data), config.projection_dim),
    options=("backbone", "image_size", "patch_size", "min_scale", "projection_dim"),
    loss="SigLIP",
)
SIMCSE = Recipe(
    load=load_sentences,
    build=simcse,
    augment=lambda config, data: None,
    arguments=sentence_arguments,
    monitor=sentence_scores,
    points=sentence_points,
    scores={
        "part1": ("part@1", "third of words, recall@1"),
        "part10": ("part@10", "third of words, recall@10"),
        "next1": ("next@1", "next sentence, recall@1"),
        "next10": ("next@10", "next sentence, recall@10"),
    },
    options=("backbone", "pooler", "temperature"),
    defaults={
        "data": "sentences",
        "backbone": "bert" if find_spec("transformers") else "text",
        "epochs": 3,
        "batch_size": 128,
        "lr": 4e-3,
        "temperature": 0.1,
    },
    help={
        "data": f"sentences, or triples (supervised: sentence, next sentence, hard negative); text of your own: {OWN_DATA}",
        "backbone": "bert (transformers' BertModel, small, fresh weights), or text (built in)",
    },
    loss="InfoNCE",
    heading="retrieval of test sentences",
    unit="sentences",
)
BERT_ = replace(
    SIMCSE,
    load=load_words,
    build=bert,
    arguments=lambda module, batch: (batch[0],),
    monitor=word_scores,
    scores={"accuracy": ("accuracy", "hidden words named")},
    watch={"commonest": ("commonest", "the commonest word", ".3f")},
    options=("mask_ratio",),
    defaults={"data": "sentences", "backbone": "text", "epochs": 10, "batch_size": 64, "lr": 2e-3, "mask_ratio": 0.15},
    help={"data": f"sentences; text of your own: {OWN_DATA}", "mask_ratio": "share of the tokens that is selected"},
    loss="masked language model",
    heading="test sentences",
)

TEXT_RECIPES: dict[str, Recipe] = {"clip": CLIP_, "siglip": SIGLIP, "simcse": SIMCSE, "bert": BERT_}
