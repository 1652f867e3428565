"""wav2vec 2.0: the loss written out, the quantiser, what is hidden, negatives, refusals."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastssl.methods import FrameEncoder, Wav2Vec2

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"width": 8, "depth": 1, "heads": 2, "codes": (2, 3), "spans": (0.1, 4), "num_negatives": 6}


def made(**how):
    torch.manual_seed(0)
    return Wav2Vec2(frame_dim=6, **SMALL | how).double()


def sounds(batch=3, samples=1600):
    return torch.randn(batch, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def test_the_loss_is_that_of_the_paper():
    """Few codes, so that some negatives have the code of the target."""
    method, x = made(temperature=0.2, diversity_weight=0.3).eval(), sounds()
    query, keys, negatives, perplexity = method.task(x, generator())
    losses, left_out = [], 0
    for i, others in enumerate(negatives):
        kept = [j for j in others.tolist() if not torch.equal(keys[j], keys[i])]
        left_out += len(others) - len(kept)
        cos = torch.stack([torch.cosine_similarity(query[i], keys[j], dim=0) for j in [i, *kept]]) / 0.2
        losses.append(cos.logsumexp(0) - cos[0])
    wanted = torch.stack(losses).mean() + 0.3 * (1 - perplexity / 6)
    torch.testing.assert_close(method(x, generator=generator()), wanted)
    assert left_out > 0 and 2 <= perplexity <= 6


def test_negatives_are_other_hidden_frames_of_the_same_sound():
    method, seen = made(num_negatives=200), {}
    mask_of = method.context

    def context(z, mask=None):
        seen["mask"] = mask
        return mask_of(z, mask)

    method.context = context
    _, keys, negatives, _ = method.task(sounds(), generator())
    sound = seen["mask"].nonzero()[:, 0]
    own = torch.arange(len(keys))
    assert (sound[negatives] == sound[:, None]).all() and not (negatives == own[:, None]).any()
    for i in (0, len(own) - 1):  # all the others are drawn
        assert set(negatives[i].tolist()) == set(own[sound == sound[i]].tolist()) - {i}


def test_predictions_do_not_know_the_hidden_frames():
    """Other frames below the mask: the same predictions, other targets."""
    method = made().eval()
    z, mask = torch.randn(2, 20, 6, dtype=torch.float64), torch.zeros(2, 20, dtype=torch.bool)
    mask[:, 5:12] = True
    other = torch.where(mask[:, :, None], torch.randn_like(z), z)
    torch.testing.assert_close(method.context(z, mask), method.context(other, mask))
    assert not torch.allclose(method.context(z), method.context(other))


def test_the_quantiser():
    """Values are sums of entries; rows of equal codes are equal in all bits; the gradient is that of the soft choice."""
    quantizer = made().quantizer
    z = torch.randn(50, 6, dtype=torch.float64, generator=generator()).requires_grad_()
    heat = torch.tensor(0.7)
    q, _ = quantizer(z, heat, generator())
    sums = (quantizer.tables[0][:, None] + quantizer.tables[1][None]).flatten(0, 1)
    assert (q[:, None] == sums).all(2).any(1).all() and len(q.unique(dim=0)) > 1
    noise = -torch.empty(50, 2, 3, dtype=torch.float64).exponential_(generator=generator()).log()
    soft = ((quantizer.logits(z).unflatten(1, (2, 3)) + noise) / heat).softmax(2)
    weight = torch.randn(8, dtype=torch.float64)
    (wanted,) = torch.autograd.grad((torch.einsum("mgv,gvd->md", soft, quantizer.tables) @ weight).sum(), z)
    (found,) = torch.autograd.grad((q @ weight).sum(), z)
    torch.testing.assert_close(found, wanted)
    still = quantizer.eval()(z, heat)[0]
    assert torch.equal(still, quantizer(z, torch.tensor(9.0))[0])  # no noise in evaluation


def test_the_temperature_follows_the_steps_of_the_state():
    method = made(gumbel=(2.0, 0.5, 0.5))
    heats = []
    for _ in range(4):
        heats.append(method.quantizer.temperature().item())
        method(sounds())
    assert heats == [2.0, 1.0, 0.5, 0.5] and method.state_dict()["quantizer.step"] == 4
    method.eval()(sounds())
    assert method.quantizer.step == 4


def test_checkpointing_runs_the_forward_again_without_another_step():
    """The same noise, temperature and gradients, one step."""
    plain = made(gumbel=(2.0, 0.5, 0.5))
    again, found = copy.deepcopy(plain), []
    for method, call in ((plain, plain), (again, lambda x: checkpoint(again, x, use_reentrant=False))):
        torch.manual_seed(3)
        for _ in range(2):
            call(sounds().requires_grad_()).backward()
        found.append([p.grad for p in method.parameters()])
    torch.testing.assert_close(found[1], found[0])
    assert again.quantizer.step == 2


def test_encoders_and_widths():
    encoder = FrameEncoder(width=5, strides=(4, 5))
    assert encoder.hop == 20 and encoder(torch.randn(2, 200)).shape == (2, 10, 5)
    method = Wav2Vec2(encoder, 5, **SMALL)
    assert method.embed(torch.randn(2, 400)).shape == (2, 8) and method.feature_dim == 8
    louder = encoder(3.0 * torch.ones(1, 200).cumsum(1).sin())
    torch.testing.assert_close(louder, encoder(torch.ones(1, 200).cumsum(1).sin()), atol=1e-3, rtol=1e-3)


WRONG = {
    "encoder": (TypeError, "encoder must be a torch.nn.Module", lambda: Wav2Vec2(3, 5)),
    "no width": (ValueError, "frame_dim must be the width of the encoder's frames", lambda: Wav2Vec2(FrameEncoder(5))),
    "heads": (ValueError, "width must be a multiple of heads", lambda: Wav2Vec2(width=9, heads=2)),
    "codes": (ValueError, "codes must be 2 numbers", lambda: Wav2Vec2(codes=(2,))),
    "entries": (ValueError, r"codes\[1\] must be", lambda: Wav2Vec2(codes=(2, 0))),
    "spans": (ValueError, r"spans\[0\] must be", lambda: Wav2Vec2(spans=(1.5, 3))),
    "gumbel": (ValueError, r"gumbel\[1\] must be above 0", lambda: Wav2Vec2(gumbel=(1.0, 0.0, 0.9))),
    "temperature": (ValueError, "temperature must be above 0", lambda: Wav2Vec2(temperature=0)),
    "rank": (ValueError, r"waveforms must be float \(B, S\)", lambda: made()(sounds()[0])),
    "integers": (ValueError, r"waveforms must be float \(B, S\)", lambda: made()(sounds().long())),
    "short": (ValueError, "waveforms must give at least 4 frames", lambda: made()(sounds(samples=240))),
    "frames": (ValueError, r"the encoder must return \(2, T, 4\)", lambda: Wav2Vec2(nn.Linear(40, 4), 4)(torch.rand(2, 40))),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_refused(name):
    error, words, call = WRONG[name]
    with pytest.raises(error, match=f"Wav2Vec2: .*{words}"):
        call()
