# ruff: noqa: E402
"""CLIP, SigLIP and SimCSE: the losses against plain float64 formulas, real training, their data, the command line."""

import time
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.support.rotation import of_today

needs = ("PIL", "kornia", "lightning_utilities", "matplotlib", "skimage", "sklearn", "tensorboard")
if any(find_spec(name) is None for name in needs):
    pytest.skip("fastssl[train] is not installed", allow_module_level=True)

from fastssl.__main__ import main
from fastssl.methods import CLIP, SigLIP, SimCSE
from fastssl.train import TrainConfig, captions, sentences
from fastssl.train.augment import as_float
from fastssl.train.recipes import RECIPES
from fastssl.train.text import MeanText, TextTransformer, WordTokenizer, small_bert
from tests.support.training import part_of

NO_TRANSFORMERS = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
ENCODERS = ["text", pytest.param("bert", marks=NO_TRANSFORMERS)]
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
INF = float("inf")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def phrases():
    """``sentences.sentences`` once for each of its arguments."""
    made = {}

    def get(*key):
        if key not in made:
            made[key] = sentences.sentences(key[0], pieces=key[1])
        return made[key]

    return get


def tiny(method: type, **how) -> nn.Module:
    torch.manual_seed(0)
    image = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 12))
    text = MeanText(TextTransformer(30, width=8, depth=1, heads=2, length=6, dropout=0.0))
    return method(image, text, 10, image_dim=12, **how).double()


def pairs(count: int = 7):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 8, 8, generator=generator, dtype=torch.float64)
    return images, torch.randint(1, 30, (count, 6), generator=generator)


def masked_cross_entropy(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Row i against column i; columns of equal id are left out."""
    same = (ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool)
    return nn.functional.cross_entropy(logits.masked_fill(same, -INF), torch.arange(len(ids)))


@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 3, 3, 3]])
def test_clip_is_the_cross_entropy_of_both_directions(ids):
    method, (images, tokens) = tiny(CLIP), pairs()
    ids = ids if ids is None else torch.tensor(ids)
    loss = method(images, tokens, ids)
    logits = method.embed_image(images) @ method.embed_text(tokens).T * method.logit_scale.exp()
    own = torch.arange(len(images)) if ids is None else ids
    expected = 0.5 * (masked_cross_entropy(logits, own) + masked_cross_entropy(logits.T, own))
    torch.testing.assert_close(loss, expected, **CLOSE)
    parameters = list(method.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    loss = method(images, tokens, ids)
    loss.backward()
    assert method.logit_scale.grad.abs() > 1e-6 and all(p.grad is not None for p in parameters)


def test_clip_scale_starts_at_the_papers_and_stops_at_100():
    method, (images, tokens) = tiny(CLIP), pairs()
    torch.testing.assert_close(method.logit_scale.exp().item(), 1 / 0.07)
    method.logit_scale.data.fill_(9.0)
    method(images, tokens).backward()
    torch.testing.assert_close(method.logit_scale.exp().item(), 100.0)
    assert method.logit_scale.grad != 0


@pytest.mark.parametrize("ids", [(None, None), ([0, 1, 0, 2, 3, 3, 3], None), ([0, 1, 0, 2, 3, 3, 3], [0, 1, 4, 2, 3, 0, 5])])
def test_siglip_is_the_logistic_loss_of_every_pair(ids):
    method, (images, tokens) = tiny(SigLIP), pairs()
    assert method.logit_bias.item() == -10.0 and abs(method.logit_scale.exp().item() - 10.0) < 1e-5
    image_id, text_id = (torch.tensor(i) if i else None for i in ids)
    loss = method(images, tokens, image_id, text_id)
    logits = method.embed_image(images) @ method.embed_text(tokens).T * method.logit_scale.exp() + method.logit_bias
    own = torch.arange(len(images)) if image_id is None else image_id
    sign = 2.0 * (own[:, None] == (own if text_id is None else text_id)) - 1.0
    expected = -nn.functional.logsigmoid(sign * logits).sum() / len(images)
    torch.testing.assert_close(loss, expected, **CLOSE)
    parameters = list(method.parameters())
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    method(images, tokens).backward()
    assert method.logit_scale.grad.abs() > 1e-6 and method.logit_bias.grad.abs() > 1e-6


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return (small_bert if name == "bert" else TextTransformer)(30, width=8, depth=1, heads=2, length=6)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pooler", ["cls", "mean"])
@pytest.mark.parametrize("kind", ["unsupervised", "pairs", "triples", "triples with ids", "triples with weight"])
def test_simcse_is_the_cross_entropy_of_cosines(name, pooler, kind):
    weight = 0.7 if "weight" in kind else 0.0
    method = SimCSE(encoder(name), pooler, 0.05, weight).double()
    count, several = 6, {"unsupervised": 1, "pairs": 2}.get(kind, 3)
    tokens = torch.randint(4, 30, (count, several, 6), generator=torch.Generator().manual_seed(2))
    tokens[:, :, 4:] *= (torch.arange(count) % 2)[:, None, None]  # half of the sentences have two tokens of padding
    ids = torch.tensor([0, 1, 0, 2, 3, 3]) if "ids" in kind else None
    given = tokens[:, 0] if several == 1 else tokens
    torch.manual_seed(3)
    loss = method(given, (given != 0).long(), ids)

    torch.manual_seed(3)
    rows = torch.cat([tokens[:, min(k, several - 1)] for k in range(max(2, several))])
    hidden = method.encoder(input_ids=rows, attention_mask=(rows != 0).long()).last_hidden_state
    mask = (rows != 0).double()[..., None]
    pooled = hidden[:, 0] if pooler == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    z = nn.functional.normalize(method.head(pooled), dim=1).chunk(max(2, several))
    own = torch.arange(count) if ids is None else ids
    same = (own[:, None] == own) & ~torch.eye(count, dtype=torch.bool)
    logits = (z[0] @ z[1].T / 0.05).masked_fill(same, -INF)
    if several == 3:
        logits = torch.cat([logits, z[0] @ z[2].T / 0.05 + weight * torch.eye(count)], 1)
    expected = nn.functional.cross_entropy(logits, torch.arange(count))
    torch.testing.assert_close(loss, expected, **CLOSE)
    assert kind != "unsupervised" or not torch.allclose(z[0], z[1])  # dropout makes the two passes differ
    loss.backward()
    assert all(p.grad is not None for p in method.head.parameters())


def test_simcse_head_is_for_training_only():
    method = SimCSE(encoder("text")).eval()
    tokens = torch.randint(4, 30, (3, 6))
    hidden = method.encoder(tokens, torch.ones_like(tokens)).last_hidden_state
    torch.testing.assert_close(method.embed(tokens, torch.ones_like(tokens)), hidden[:, 0])


BAD = [
    (lambda: tiny(CLIP, temperature=0.0), "CLIP: temperature must be above 0"),
    (lambda: tiny(SigLIP, scale=-1.0), "scale must be above 0"),
    (lambda: CLIP(nn.Flatten(), nn.Embedding(3, 4), image_dim=3), r"CLIP: the text_encoder must return .*, got shape \(2, 4, 4\)"),
    (lambda: tiny(CLIP)(pairs()[0], pairs(5)[1]), "same B of at least 2"),
    (lambda: tiny(SigLIP)(*pairs(1)), "same B of at least 2"),
    (lambda: tiny(CLIP, text_dim=9)(*pairs()), "CLIP: the text_encoder gives 8 features, expected 9"),
    (lambda: tiny(CLIP)(*pairs(), torch.zeros(3, dtype=torch.int64)), "ids"),
    (lambda: tiny(SigLIP)(*pairs(), None, torch.zeros(7, dtype=torch.int64)), "text_id was given without image_id"),
    (lambda: SimCSE(encoder("text"), "max"), "pooler must be"),
    (lambda: SimCSE(encoder("text"), temperature=0.0), "temperature must be above 0"),
    (lambda: SimCSE(nn.Linear(2, 2)), "pass hidden_dim"),
    (lambda: SimCSE(encoder("text"))(torch.ones(1, 6).long(), torch.ones(1, 6).long()), "B of at least 2"),
    (lambda: SimCSE(encoder("text"))(torch.ones(4, 4, 6).long(), torch.ones(4, 4, 6).long()), r"\(B, 3, L\)"),
    (lambda: SimCSE(encoder("text"))(torch.ones(4, 6).long(), torch.ones(4, 5).long()), "shape of input_ids"),
    (lambda: encoder("text")(torch.ones(2, 7).long()), "texts of 6 tokens, got 7"),
]


@pytest.mark.parametrize("call, said", BAD)
def test_bad_input_is_refused_with_a_message(call, said):
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    "arguments, named",
    of_today(
        [
            (["clip", "--data", "photos"], "--data"),
            (["simcse", "--data", "photos"], "--data"),
            (["simcse", "--backbone", "conv"], "--backbone"),
            (["simcse", "--pooler", "max"], "--pooler"),
            (["siglip", "--temperature", "1"], "--temperature"),
        ],
        3,
    ),
)
def test_wrong_options_are_one_line(arguments, named, capsys):
    assert main(["train", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and "error:" in said


def test_test_captions_are_new_sentences_of_known_words():
    data = captions.captions()
    known = {caption for texts in captions.CAPTIONS.values() for caption in texts[: -captions.HELD_OUT]}
    held_out = [caption for texts in captions.CAPTIONS.values() for caption in texts[-captions.HELD_OUT :]]
    assert len({*known, *held_out}) == 6 * 18 and not known & set(held_out)
    assert data.train_tokens.shape[:2] == (18, 4) and data.test_tokens.shape[:2] == (18, 2)
    assert not (data.test_tokens == 1).any()  # [UNK]
    assert data.train.labels.max() == 17


@pytest.mark.parametrize("pieces", of_today([False, pytest.param(True, marks=NO_TRANSFORMERS)], 2))
def test_sentences_are_the_same_every_time(pieces, phrases):
    data, again = phrases("triples", pieces), sentences.sentences("triples", pieces=pieces)
    assert torch.equal(data.train.tokens, again.train.tokens) and torch.equal(data.parts, again.parts)
    assert data.train.tokens.shape[1:] == (3, 24) and data.train.tokens.max() < data.vocabulary
    assert len(data.train) > 1000 and len(data.test) > 400 and len(data.neighbours) > 100  # by the version of Python


def test_test_sentences_are_of_other_documents():
    train, test = (sentences.flat(half) for half in sentences.paragraphs())
    assert not {s.lower() for s in train[0]} & {s.lower() for s in test[0]} and not set(train[2]) & set(test[2])
    rows = sentences.following(train[1])[:50, 0]
    found = sentences.hard_negatives(train[0], train[2], rows)
    assert all(train[2][i] != train[2][j] for i, j in zip(rows, found, strict=True))
    assert all(len(text.split()) >= sentences.WORDS[0] for text in test[0])


def test_word_tokenizer():
    tokenizer = WordTokenizer(["a cat, a dog", "a cow"], 8)
    assert len(tokenizer) == 8 and tokenizer(["a cat , a snail"], 6).tolist() == [[2, 4, 6, 5, 4, 3]]
    assert tokenizer(["a", "a a"]).tolist() == [[2, 4, 3, 0], [2, 4, 4, 3]]


def train(name: str, data, config: TrainConfig, steps: int, batch: int, lr: float):
    """The recipe's method in a plain loop without augmentation -> losses, scores before and after, seconds of training."""
    recipe = RECIPES[name]
    torch.manual_seed(config.seed)
    method = recipe.build(config, data)
    module = SimpleNamespace(method=method, views=SimpleNamespace(one=as_float), config=config, data=data)
    optimizer = torch.optim.AdamW(method.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    where = {"device": "cpu", "workers": 0, "most": None, "full": True}
    before, losses, started = recipe.monitor(method, data, config, **where), [], time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = method(*recipe.arguments(module, data.train.__getitems__(torch.randperm(len(data.train))[:batch].tolist())))
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    after = recipe.monitor(method, data, config, **where)
    print(f"\n{name} on {data.name}: {seconds:.0f} s, loss {losses[0]:.3f} -> {sum(losses[-5:]) / 5:.3f}")
    for score in before:
        print(f"  {recipe.scores[score][1]:<28}{before[score]:>8.3f}{after[score]:>8.3f}")
    assert sum(losses[-5:]) / 5 < 0.85 * losses[0]
    return before, after


# Every bound below is at most half of the least gain that three seeds gave: training on another CPU is another seed.


@pytest.mark.parametrize("name", of_today(["clip", "siglip"], 2))
def test_training_finds_new_captions_of_new_crops(name):
    config = RECIPES[name].settings()
    before, after = train(name, captions.captions(), config, 40, 96, 3e-3)
    assert max(before.values()) < 0.09 and min(after.values()) > 0.15  # 18 pictures: chance is 0.056


@pytest.mark.parametrize("name, data", of_today([("text", "triples"), pytest.param("bert", "sentences", marks=NO_TRANSFORMERS)], 2))
def test_training_finds_sentences(name, data, phrases):
    config = RECIPES["simcse"].settings(backbone=name, data=data)
    before, after = train("simcse", phrases(data, name == "bert"), config, 40, 128, 4e-3)
    assert after["part1"] > before["part1"] + 0.03 and after["part10"] > before["part10"] + 0.09
    if data == "triples":
        assert after["next10"] > before["next10"] + 0.01


@pytest.fixture
def a_quarter(monkeypatch, phrases):
    """The data sets with every fourth of their training rows, and of the test crops."""
    crops, texts = captions.captions, phrases("sentences", False)
    rows = sentences.TokenRows(texts.train.tokens[::4], texts.train.groups[::4])
    monkeypatch.setattr(captions, "captions", lambda *how: part_of(crops(*how), 4, 4))
    monkeypatch.setattr(sentences, "sentences", lambda *_, **__: replace(texts, train=rows))


@pytest.mark.usefixtures("a_quarter")
@pytest.mark.parametrize("arguments", [["clip"], ["siglip"], ["simcse", "--backbone", "text"]])
def test_one_epoch_by_the_command_line(arguments, tmp_path, capsys):
    options = ["--epochs", "1", "--warmup-epochs", "0.3", "--map", "pca", "--accelerator", "cpu", "--out", str(tmp_path)]
    assert main(["train", *arguments, *options]) == 0
    said = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{said}")
    assert "epoch   1/1" in said and "untrained" in said
    for name in ("last.ckpt", "curves.png", "map.png"):
        assert (tmp_path / name).stat().st_size > 1000, name
    assert main(["eval", str(tmp_path), "--map", "none"]) == 0
    table = [line.split()[-2:] for line in said.splitlines() if "@1" in line and "epoch" not in line]
    again = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "@1" in line]
    assert table and [after for _, after in table] == again
