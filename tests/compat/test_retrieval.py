"""Drop-ins for retrieval trainers: each trainer's loss against its formula."""

import importlib
import itertools
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import fastssl
from fastssl.compat import contrastors, grad_cache, ms_swift, sentence_transformers
from tests.support.compat_nets import library

pytestmark = pytest.mark.usefixtures("one_thread")


def rows(*counts, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, width, dtype=torch.float64, generator=generator).requires_grad_() for count in counts]


def value_and_grads(loss, inputs):
    return loss.detach(), torch.autograd.grad(loss, inputs)


# --- sentence-transformers ------------------------------------------------------------------------------------------------------


def cos_sim(a, b):
    return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T


def dot_score(a, b):
    return a @ b.T


for similarity in (cos_sim, dot_score):
    similarity.__module__ = "sentence_transformers.util"

TERMS = ("query_to_query", "doc_to_query", "doc_to_doc")


def options(directions=("query_to_doc",), mode="joint", hardness=None, strength=0.0, similarity=cos_sim, scale=20.0):
    return SimpleNamespace(
        scale=scale,
        similarity_fct=similarity,
        gather_across_devices=False,
        directions=directions,
        partition_mode=mode,
        hardness_mode=hardness,
        hardness_strength=strength,
    )


def ranking(loss, embeddings):
    """The loss of matrices, as the papers that the library cites write it (GTE's eq. 2 to 5; hardness: Lan et al. 2025, eq. 5)."""
    query, positive, docs = embeddings[0], embeddings[1], torch.cat(embeddings[1:])
    own = torch.eye(len(query), dtype=torch.bool)
    of_own, kinds = own.repeat(1, len(embeddings) - 1), torch.arange(len(docs)) // len(query)
    scores = {"query_to_doc": loss.similarity_fct(query, docs)}
    penalised = {
        None: torch.zeros_like(of_own),
        "in_batch_negatives": ~of_own,
        "hard_negatives": of_own & (kinds > 0),
        "all_negatives": ~(of_own & (kinds == 0)),
    }[loss.hardness_mode]
    bonus = loss.hardness_strength * scores["query_to_doc"].detach() * penalised
    others = {
        "query_to_query": lambda: loss.similarity_fct(query, query).masked_fill(own, -torch.inf),
        "doc_to_query": lambda: loss.similarity_fct(positive, query),
        "doc_to_doc": lambda: loss.similarity_fct(positive, docs).masked_fill(of_own, -torch.inf),
    }
    scores |= {name: others[name]() for name in loss.directions[1:]}
    scores = {name: loss.scale * s for name, s in scores.items()}
    scores["query_to_doc"] = scores["query_to_doc"] + bonus
    hit = scores["query_to_doc"][:, : len(query)].diagonal()
    if loss.partition_mode == "joint":
        return (torch.cat(list(scores.values()), 1).logsumexp(1) - hit).mean()
    return (torch.stack([s.logsumexp(1) for s in scores.values()]).mean(0) - hit).mean()


def choices():
    """All subsets of the directions, both partitions, each hardness with and without negatives, both similarities."""
    for some in itertools.chain.from_iterable(itertools.combinations(TERMS, n) for n in range(4)):
        yield options(("query_to_doc", *some)), 3
    yield options(("query_to_doc", "doc_to_query"), "per_direction"), 2
    yield options(("query_to_doc", "doc_to_query"), "per_direction", "all_negatives", 2.0), 3
    for hardness in ("in_batch_negatives", "hard_negatives", "all_negatives"):
        yield options(("query_to_doc",), "joint", hardness, 3.0), 4
        yield options(("query_to_doc", *TERMS), "joint", hardness, 3.0, dot_score, 1.5), 2


@pytest.mark.parametrize("count", [1, 5])
def test_sentence_transformers_formulas(count):
    """With one query no in-batch negative is left, and the lse over none is minus infinity."""
    for loss, columns in choices():
        embeddings = rows(*[count] * columns)
        want = value_and_grads(ranking(loss, embeddings), embeddings)
        got = value_and_grads(sentence_transformers.compute_loss_from_embeddings(loss, embeddings, None), embeddings)
        assert_close(got, want, rtol=1e-9, atol=1e-10, msg=lambda m, loss=loss: f"{loss}: {m}")


def test_sentence_transformers_in_mini_batches():
    loss = options(("query_to_doc", *TERMS))
    whole = rows(5, 5, 5)
    want = value_and_grads(ranking(loss, whole), whole)
    parts = [[p.detach().requires_grad_() for p in part.split(2)] for part in whole]
    cached = SimpleNamespace(loss=loss)
    assert_close(sentence_transformers.calculate_loss(cached, parts), want[0])
    value = sentence_transformers.calculate_loss(cached, parts, with_backward=True)
    assert not value.requires_grad
    assert_close((value, tuple(torch.cat([p.grad for p in part]) for part in parts)), want)


def test_sentence_transformers_refuses_other_similarities():
    def cos_sim(a, b): ...

    for other in (cos_sim, torch.nn.CosineSimilarity()):
        with pytest.raises(NotImplementedError, match="similarity_fct must be cos_sim or dot_score"):
            sentence_transformers.compute_loss_from_embeddings(options(similarity=other), rows(3, 3), None)


# --- the other trainers ----------------------------------------------------------------------------------------------------------


def test_grad_cache():
    x, y = rows(4, 12)
    target = torch.tensor([2, 0, 11, 5])
    for hard, given, reduction in ((2, None, "mean"), (2, target, "sum"), (1, target, "none")):
        want = F.cross_entropy(x @ y.T, torch.arange(4) * (hard + 1) if given is None else given, reduction=reduction).sum()
        got = grad_cache.SimpleContrastiveLoss(n_hard_negatives=hard)(x, y, target=given, reduction=reduction).sum()
        assert_close(value_and_grads(got, [x, y]), value_and_grads(want, [x, y]))
    with pytest.raises(ValueError, match="y must have 2 rows for each of 4 rows of x, got 12"):
        grad_cache.SimpleContrastiveLoss(1)(x, y)


def test_contrastors():
    query, document, scale = *rows(4, 12), torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    module = lambda x: x * scale.exp()  # noqa: E731
    logits = scale.exp() * query @ document.T
    want = F.cross_entropy(logits, torch.arange(4) * 3)
    inputs = [query, document, scale]
    assert_close(value_and_grads(contrastors.clip_loss(query, document, module), inputs), value_and_grads(want, inputs))
    square = scale.exp() * query @ document[:4].T
    want = F.cross_entropy(square, torch.arange(4)) + F.cross_entropy(square.T, torch.arange(4))
    got = contrastors.clip_loss(query, document[:4], module, bidirectional=True)
    assert_close(value_and_grads(got, inputs), value_and_grads(want, inputs))
    for refused in ({"tracker": object()}, {"bidirectional": True}):
        with pytest.raises(NotImplementedError, match="clip_loss"):
            contrastors.clip_loss(query, document, module, **refused)


@pytest.mark.parametrize("negatives", [None, 1])
@pytest.mark.parametrize("extra", [(), ("QQ",), ("DD",), ("QQ", "DD")])
@pytest.mark.parametrize("mask", [False, True])
def test_ms_swift(monkeypatch, mask, extra, negatives):
    """Three samples of an anchor, a positive and two negatives; Qwen3-Embedding's denominator."""
    given = {"TEMPERATURE": "0.2", "MASK_FAKE_NEGATIVE": str(mask)} | {f"INCLUDE_{name}": "1" for name in extra}
    given |= {} if negatives is None else {"HARD_NEGATIVES": str(negatives)}
    for name, value in given.items():
        monkeypatch.setenv(f"INFONCE_{name}", value)
    (hidden,) = rows(12, seed=4)
    state = F.normalize(hidden, dim=1)
    samples = state.unflatten(0, (3, 4))[:, : 4 if negatives is None else negatives + 2]
    query, docs, group = samples[:, 0], samples[:, 1:].flatten(0, 1), samples.shape[1] - 1
    own = torch.eye(3, dtype=torch.bool)
    s, target = query @ docs.T, torch.arange(3) * group
    limit = s[torch.arange(3), target].detach()[:, None] + 0.1
    parts = [s, *([(query @ query.T).masked_fill(own, -torch.inf)] if "QQ" in extra else [])]
    parts = [part.masked_fill(part > limit, -torch.inf) for part in parts] if mask else parts
    assert not mask or any(part.isinf().sum() > (len(part) if part is not s else 0) for part in parts)  # something is masked
    if "DD" in extra:
        itself = F.one_hot(target, len(docs)).bool()
        parts.append((samples[:, 1] @ docs.T).masked_fill(itself, -torch.inf))
    want = F.cross_entropy(torch.cat(parts, 1) / 0.2, target)
    loss, labels = SimpleNamespace(is_megatron=False), torch.tensor([1, 0, 0] * 3)
    got = ms_swift.call(loss, {"last_hidden_state": F.normalize(hidden, dim=1)}, labels)
    assert_close(value_and_grads(got, [hidden]), value_and_grads(want, [hidden]))


def test_ms_swift_refuses_before_anything_is_computed(monkeypatch):
    state, labels, loss = {"last_hidden_state": rows(12)[0]}, torch.tensor([1, 0, 0] * 3), SimpleNamespace(is_megatron=False)
    with pytest.raises(NotImplementedError, match="Megatron"):
        ms_swift.call(SimpleNamespace(is_megatron=True), state, labels)
    for other in (torch.tensor([1, 0, 0, 1, 0, 0, 0, 1, 0]), torch.tensor([0, 1, 0, 1, 0, 0, 1, 0, 0]), torch.zeros(9)):
        with pytest.raises(NotImplementedError, match=r"as many negatives, got \[1, 2, 3\]|labels must be 1"):
            ms_swift.call(loss, state, other)
    for name, value in (("USE_BATCH", "false"), ("FAKE_NEG_MARGIN", "-0.1"), ("HARD_NEGATIVES", "3")):
        with monkeypatch.context() as change, pytest.raises(NotImplementedError):
            change.setenv(f"INFONCE_{name}", value)
            ms_swift.call(loss, state, labels)


PUBLISHED = {
    "tevatron/retriever/modeling/encoder.py": """
import torch
from dataclasses import dataclass
from transformers.utils import ModelOutput
@dataclass
class EncoderOutput(ModelOutput):
    q_reps: object = None
    p_reps: object = None
    loss: object = None
    scores: object = None
class EncoderModel(torch.nn.Module):
    is_ddp, temperature = False, 0.1
    def encode_query(self, query): return query["x"]
    def encode_passage(self, passage): return passage["x"]
    def compute_similarity(self, q_reps, p_reps): return q_reps @ p_reps.T
    def compute_loss(self, scores, target): return torch.nn.functional.cross_entropy(scores, target)
    def forward(self, query=None, passage=None):
        q, p = self.encode_query(query), self.encode_passage(passage)
        scores = self.compute_similarity(q, p)
        target = torch.arange(len(q)) * (len(p) // len(q))
        return EncoderOutput(loss=self.compute_loss(scores / self.temperature, target), scores=scores, q_reps=q, p_reps=p)
""",
    "FlagEmbedding/abc/finetune/embedder/AbsModeling.py": """
class AbsEmbedderModel:
    temperature = 0.1
    def forward(self, q, p, **options): return self._compute_in_batch_neg_loss(q, p, **options)[1]
    def _compute_in_batch_neg_loss(self, q_reps, p_reps, teacher_targets=None, compute_score_func=None, **kwargs):
        return "theirs", "theirs"
    def _compute_cross_device_neg_loss(self, q_reps, p_reps, teacher_targets=None, compute_score_func=None, **kwargs):
        return "theirs", "theirs"
""",
    "swift/loss/embedding.py": """
class InfonceLoss:
    is_megatron = False
    def __call__(self, outputs, labels, **kwargs):
        gradient_scale = 1
        return "theirs"
""",
    "FlagEmbedding/finetune/models.py": """
from FlagEmbedding.abc.finetune.embedder.AbsModeling import AbsEmbedderModel
class Plain(AbsEmbedderModel):
    def compute_score(self, q_reps, p_reps): ...
    def _compute_similarity(self, q_reps, p_reps): ...
    def compute_loss(self, scores, target): ...
""",
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Packages with the classes whose methods are swapped, as they were published."""
    for name, source in PUBLISHED.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        for package in list(path.relative_to(tmp_path).parents)[:-1]:
            (tmp_path / package / "__init__.py").touch()
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tevatron", "FlagEmbedding", "swift")]:
        del sys.modules[name]


def test_tevatron(published):
    library("transformers")
    module = importlib.import_module("tevatron.retriever.modeling.encoder")

    class Other(module.EncoderModel):
        def compute_similarity(self, q_reps, p_reps):
            return -torch.cdist(q_reps, p_reps)

    query, passage = rows(4, 12)
    results = []
    for patched in (False, True):
        with fastssl.patch("tevatron") if patched else nullcontext():
            outputs = [cls()({"x": query}, {"x": passage}) for cls in (module.EncoderModel, Other)]
        losses = [value_and_grads(output.loss, [query, passage]) for output in outputs]
        results.append((losses, [list(output.to_tuple()) for output in outputs], [output.scores for output in outputs]))
    assert type(outputs[0]).__module__ == "fastssl.compat.tevatron" and type(outputs[1]) is module.EncoderOutput
    assert_close(*results)


def test_flag_embedding(published):
    models = importlib.import_module("FlagEmbedding.finetune.models")

    class Other(models.Plain):
        def compute_score(self, q_reps, p_reps): ...

    query, passage = rows(4, 12)
    want = F.cross_entropy(query @ passage.T / 0.1, torch.arange(4) * 3)
    with fastssl.patch("FlagEmbedding") as patch:
        assert len(patch.names) == 2
        got = models.Plain().forward(query, passage)
        assert_close(value_and_grads(got, [query, passage]), value_and_grads(want, [query, passage]))
        assert models.Plain()._compute_cross_device_neg_loss(query, passage)[1].isfinite()
        assert Other().forward(query, passage) == "theirs"
        assert models.Plain().forward(query, passage, teacher_targets=1) == "theirs"


def test_ms_swift_by_patch(published):
    cls = importlib.import_module("swift.loss.embedding").InfonceLoss
    state, labels = {"last_hidden_state": rows(12)[0]}, torch.tensor([1, 0, 0] * 3)
    with fastssl.patch("swift") as patch:
        assert patch.names == ("InfonceLoss.__call__",)
        assert cls()(state, labels).isfinite() and cls()(state, torch.zeros(9)) == "theirs"
        assert fastssl.patch("swift").names == ()
    assert cls()(state, labels) == "theirs"


def test_versions_that_compute_something_else_are_refused(published, monkeypatch):
    """ms-swift before 4.6, without its factor of the gradient; tevatron with passages in chunks."""
    old = importlib.import_module("swift.loss.embedding").InfonceLoss
    monkeypatch.setattr(old, "__call__", lambda self, outputs, labels, **kwargs: 0)
    chunked = importlib.import_module("tevatron.retriever.modeling.encoder").EncoderModel
    chunked.compute_maxsim_similarity = None
    for name in ("swift", "tevatron"):
        with pytest.raises(ValueError, match="of this version computes something else"):
            fastssl.patch(name)
