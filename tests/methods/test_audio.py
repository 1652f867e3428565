"""COLA, MultiFormat, AudioMAE and the log-mel spectrogram: their formulas in float64, and what they refuse."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastssl.methods import COLA, CPC, MAE, AudioMAE, LogMel, MultiFormat, VisionTransformer
from tests.support.formulas import cross_entropy64, gradients_agree, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def log_mel64(waveform, rate, mels, window, hop, low, floor):
    """The formula of LogMel, sample by sample and bin by bin."""
    length, step = round(window * rate), round(hop * rate)
    size = 2 ** math.ceil(math.log2(length))
    hann = [0.5 - 0.5 * math.cos(2 * math.pi * n / length) for n in range(length)]
    weights = torch.zeros(size, dtype=torch.float64)
    weights[(size - length) // 2 : (size - length) // 2 + length] = torch.tensor(hann, dtype=torch.float64)
    n, k = torch.arange(size, dtype=torch.float64), torch.arange(size // 2 + 1, dtype=torch.float64)
    angle = 2 * math.pi * k[:, None] * n / size
    ends = [2595 * math.log10(1 + hertz / 700) for hertz in (low, rate / 2)]
    corners = [700 * (10 ** ((ends[0] + (ends[1] - ends[0]) * m / (mels + 1)) / 2595) - 1) for m in range(mels + 2)]

    def triangle(hertz, left, top, right):
        left, top, right, hertz = (2595 * math.log10(1 + f / 700) for f in (left, top, right, hertz))
        return max(0.0, min((hertz - left) / (top - left), (right - hertz) / (right - top)))

    bank = [[triangle(i * rate / size, *corners[m : m + 3]) for i in range(size // 2 + 1)] for m in range(mels)]
    last, columns = len(waveform) - 1, []
    for t in range(len(waveform) // step):
        places = [abs(t * step + int(i) - size // 2) for i in range(size)]
        piece = torch.tensor([waveform[place if place <= last else 2 * last - place] for place in places], dtype=torch.float64)
        power = ((weights * piece * angle.cos()).sum(1) ** 2) + ((weights * piece * angle.sin()).sum(1) ** 2)
        columns.append((torch.tensor(bank, dtype=torch.float64) @ power + floor).log())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("dtype, close", [(torch.float64, 1e-5), (torch.float32, 1e-3)])
def test_log_mel_is_its_formula(dtype, close):
    """In float64 up to the rounding of the filters and of the window, which are stored in float32."""
    waveforms = torch.rand(2, 900, dtype=torch.float64) - 0.5
    front_end = LogMel(rate=4000, mels=12, window=0.02, hop=0.01, low=50.0, floor=1e-4)
    got = front_end(waveforms.to(dtype))
    assert got.shape == (2, 1, 12, 22) and got.dtype == dtype
    for waveform, image in zip(waveforms, got, strict=True):
        expected = log_mel64(waveform.tolist(), 4000, 12, 0.02, 0.01, 50.0, 1e-4)
        torch.testing.assert_close(image[0].double(), expected, rtol=close, atol=close)


def test_log_mel_of_a_tone_is_brightest_in_its_band_and_a_delay_moves_it_to_the_right():
    front_end, time = LogMel(rate=8000, mels=40), torch.arange(4000) / 8000
    corners = torch.linspace(*[2595 * math.log10(1 + f / 700) for f in (60, 4000)], 42)
    for hertz in (300, 1000, 3000):
        band = (corners[1:-1] - 2595 * math.log10(1 + hertz / 700)).abs().argmin()
        assert front_end(torch.sin(2 * math.pi * hertz * time)[None])[0, 0].mean(1).argmax() == band
    sound = torch.zeros(1, 4000)
    sound[:, 1000:1800] = torch.rand(800)
    image, later = front_end(sound), front_end(sound.roll(160, 1))
    torch.testing.assert_close(later[..., 2:], image[..., :-2], rtol=1e-4, atol=1e-4)
    assert torch.equal(front_end(torch.zeros(1, 800)), torch.full((1, 1, 40, 10), 1e-5).log())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(front_end(sound), image)
    assert not front_end.state_dict()


def test_cola_is_the_softmax_of_the_bilinear_similarity():
    method = COLA(tiny(1, 6), projection_dim=5)
    a, b = torch.rand(4, 1, 4, 4), torch.rand(4, 1, 4, 4)
    rows, keys = (method.projection(method.backbone(view)).double() for view in (a, b))
    scores = torch.stack([torch.stack([row @ method.bilinear.weight.double().T @ key for key in keys]) for row in rows])
    gradients_agree(method, method(a, b), F.cross_entropy(scores, torch.arange(4)))
    torch.testing.assert_close(method.similarity(a, b).double(), scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(method.embed(a), method.backbone(a))


def test_multi_format_is_info_nce_both_ways_between_the_two_encoders():
    method = MultiFormat(nn.Linear(8, 6), nn.Linear(8, 7), projection_dim=5, temperature=0.2).eval()
    a, b = torch.rand(4, 8), torch.rand(4, 8)
    x, y = (head(net(part)) for head, net, part in zip(method.projection_heads, method.backbones, (a, b), strict=True))
    gradients_agree(method, method(a, b), (cross_entropy64(x, y, 0.2) + cross_entropy64(y, x, 0.2)) / 2)
    torch.testing.assert_close(method.similarity(a, b), F.normalize(x, dim=1) @ F.normalize(y, dim=1).T)
    torch.testing.assert_close(method(a), method(a, a))
    assert method.embed(a).shape == (4, 13)


def spectrogram_mae(**options) -> AudioMAE:
    torch.manual_seed(0)
    backbone = VisionTransformer(image_size=(16, 40), patch_size=8, width=8, depth=1, heads=2, channels=1)
    small = {"decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2}
    return AudioMAE(backbone, LogMel(rate=8000, mels=16), mean=-3.0, std=2.0, **small, **options)


def test_audio_mae_is_the_error_of_removed_patches_of_the_scaled_spectrogram():
    method, waveforms, noise = spectrogram_mae(), torch.rand(3, 3200) - 0.5, torch.rand(3, 10)
    loss = method(waveforms, noise=noise)
    whole = method.front_end(waveforms)
    _, painted, mask = method.reconstruct(waveforms, noise=noise)
    removed = mask.view(3, 1, 2, 5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    expected = (((painted - whole) / 2.0) ** 2 * removed).sum() / removed.sum()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    assert mask.sum(1).tolist() == [9.0] * 3  # int(10 (1 - 0.8)) stays: MAE's rounding down
    plain = MAE(method.backbone, mask_ratio=0.8, decoder_dim=8, decoder_depth=1, decoder_heads=2, pixel_mean=-3.0, pixel_std=2.0)
    plain.load_state_dict(method.state_dict())
    torch.testing.assert_close(plain(whole, noise=noise), loss)
    torch.testing.assert_close(plain.embed(whole), method.embed(waveforms))


def test_cpc_takes_parts_of_waveforms():
    method = CPC(nn.Linear(20, 6), steps=(2,), split=lambda x: x.unfold(1, 20, 10))
    waveforms = torch.rand(3, 100)
    torch.testing.assert_close(method.encode(waveforms)[1, 4], method.backbone(waveforms[1, 40:60]))
    method(waveforms).backward()


SOUND = torch.rand(4, 8)


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: COLA(nn.Identity), TypeError, "COLA: backbone must be a torch.nn.Module"),
        (lambda: COLA(nn.Linear(8, 4), projection_dim=0), ValueError, "COLA: projection_dim"),
        (lambda: COLA(nn.Linear(8, 4))(SOUND, SOUND[:3]), ValueError, "COLA: view0 and view1 must have the same shape"),
        (lambda: COLA(nn.Linear(8, 4))(SOUND[:1], SOUND[:1]), ValueError, "COLA: view0 .* B of at least 2"),
        (lambda: MultiFormat(nn.Linear(8, 4), None), TypeError, "MultiFormat: spectrogram_encoder must be a torch.nn.Module"),
        (lambda: MultiFormat(nn.Linear(8, 4), nn.Linear(8, 4), wave_dim=0), ValueError, "MultiFormat: wave_dim"),
        (lambda: MultiFormat(nn.Linear(8, 4), nn.Linear(8, 4))(SOUND, SOUND[:3]), ValueError, "MultiFormat: expected 2 views"),
        (lambda: spectrogram_mae(mask_ratio=0.99), ValueError, "AudioMAE: mask_ratio must remove some"),
        (lambda: AudioMAE(VisionTransformer(8, 4, 8, 1, 2), None), TypeError, "AudioMAE: front_end must be a torch.nn.Module"),
        (lambda: spectrogram_mae()(torch.rand(2, 800)), ValueError, "AudioMAE: images must have the shape of the backbone"),
        (lambda: LogMel(mels=0), ValueError, "LogMel: mels"),
        (lambda: LogMel(rate=8000, mels=300), ValueError, "LogMel: mels must be so few .* got 300"),
        (
            lambda: LogMel(rate=8000, high=5000.0),
            ValueError,
            "LogMel: high must be above low 60.0 and at most half of the rate 8000",
        ),
        (lambda: LogMel(rate=8000, low=-1.0), ValueError, "LogMel: low"),
        (lambda: LogMel(rate=8000, hop=1e-5), ValueError, "LogMel: hop must be at least 1 sample"),
        (
            lambda: LogMel(rate=8000)(torch.rand(2, 100)),
            ValueError,
            r"LogMel: waveforms must have shape \(B, S\) with S of at least 129",
        ),
        (lambda: LogMel(rate=8000)(torch.rand(2, 1, 800)), ValueError, "LogMel: waveforms must have shape"),
        (lambda: LogMel(rate=8000)(torch.ones(2, 800).long()), TypeError, "LogMel: waveforms must be floating, got torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
