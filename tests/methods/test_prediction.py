"""Methods that predict colours and pixels, or local features from global ones: their equations, what they refuse, what they see."""

import math

import pytest
import torch
from torch import nn

from fastssl.functional import info_nce
from fastssl.loss.parts import row_blocks
from fastssl.methods import AMDIM, DIM, Colorization, ImageGPT, SplitBrain
from fastssl.methods._lab import ColourBins, ab_bins, lab_to_rgb, rgb_to_lab
from fastssl.methods.amdim import clipped_nce

pytestmark = pytest.mark.usefixtures("one_thread")


class Maps(nn.Module):
    """images (N, C, S, S) -> maps (N, 6, S / 4, S / 4), features (N, 6)."""

    def __init__(self, channels: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 6, 4, 4)

    def forward_features(self, x):
        return self.convolution(x).tanh()

    def forward(self, x):
        return self.forward_features(x).mean((2, 3))


# --- colours --------------------------------------------------------------------------------------------------------------

# sRGB and its Lab under D65, to two digits
KNOWN = {
    (1, 0, 0): (53.24, 80.09, 67.20),
    (0, 1, 0): (87.74, -86.18, 83.18),
    (0, 0, 1): (32.30, 79.19, -107.86),
    (1, 1, 1): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


def test_lab_of_known_colours_and_back():
    rgb = torch.tensor(list(KNOWN), dtype=torch.float64)[:, :, None, None]
    torch.testing.assert_close(rgb_to_lab(rgb)[:, :, 0, 0], torch.tensor(list(KNOWN.values())).double(), rtol=0, atol=0.02)
    images = torch.rand(4, 3, 5, 6)
    assert rgb_to_lab(images.half()).dtype == torch.float32
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, rtol=0, atol=1e-4)
    images = images.clone().requires_grad_()
    rgb_to_lab(images).sum().backward()
    assert images.grad.isfinite().all()


def test_the_bins_are_the_corners_of_the_cells_that_the_gamut_touches_and_four_more():
    bins = {(int(a), int(b)) for a, b in ab_bins().tolist()}
    assert len(ab_bins()) == len(bins) == 313 and ab_bins().tolist() == sorted(ab_bins().tolist())
    side = torch.linspace(0, 1, 48, dtype=torch.float64)
    square = torch.cartesian_prod(side, side)
    faces = [square.new_full((len(square), 3), value) for _ in range(3) for value in (0.0, 1.0)]
    for i, face in enumerate(faces):
        face[:, [c for c in range(3) if c != i // 2]] = square
    ab = rgb_to_lab(torch.cat(faces).T[None, :, :, None])[0, 1:, :, 0].T
    low = torch.unique((ab / 10).floor(), dim=0).long().tolist()
    corners = {(10 * (a + i), 10 * (b + j)) for a, b in low for i in (0, 1) for j in (0, 1)}
    assert corners <= bins and len(bins - corners) < 20
    assert {(40, 90), (100, -90), (100, -10), (100, 0)} <= bins - corners


def test_soft_encoding_and_annealed_mean():
    colours = ColourBins().double()
    target, weight = colours.encode(torch.tensor([[0.0, 0.0], [31.0, -42.0]], dtype=torch.float64))
    assert (target > 0).sum(1).tolist() == [5, 5] and weight.tolist() == [1, 1]
    near = math.exp(-100 / 50)
    assert target[0].max().item() == pytest.approx(1 / (1 + 4 * near))
    d = [math.hypot(31 - a, -42 - b) for a, b in colours.bins.tolist()]
    kept = sorted(range(313), key=d.__getitem__)[:5]
    want = torch.zeros(313, dtype=torch.float64)
    want[kept] = torch.tensor([math.exp(-(d[q] ** 2) / 50) for q in kept], dtype=torch.float64)
    torch.testing.assert_close(target[1], want / want.sum())
    logits = torch.randn(2, 313, 3, 2, dtype=torch.float64)
    z = logits.softmax(1)
    annealed = z ** (1 / 0.38) / (z ** (1 / 0.38)).sum(1, keepdim=True)
    torch.testing.assert_close(colours.decode(logits, 0.38), torch.einsum("nqhw,qc->nchw", annealed, colours.bins))
    best = logits.argmax(1)
    peaked = logits.scatter_add(1, best[:, None], torch.ones_like(logits[:, :1]))  # by 1 above all others at least
    torch.testing.assert_close(colours.decode(peaked, 1e-4), colours.bins[best].permute(0, 3, 1, 2))


def test_weights_are_the_smoothed_inverse_frequencies():
    colours, counts = ColourBins(0.5, 5.0), torch.zeros(313)
    colours.set_frequencies(torch.ones(313))
    torch.testing.assert_close(colours.weight, torch.ones(313))
    counts[[100, 101, 200]] = torch.tensor([90.0, 8.0, 2.0])
    colours.set_frequencies(counts)
    bins = colours.bins.double()
    near = (-(bins[:, None] - bins[None]).square().sum(2) / 50).exp()
    p = near / near.sum(1, keepdim=True) @ (counts.double() / 100)
    p = p / p.sum()
    weight = 1 / (0.5 * p + 0.5 / 313)
    torch.testing.assert_close(colours.weight.double(), weight / (p * weight).sum(), rtol=1e-5, atol=1e-6)
    assert colours.weight[100] < colours.weight[101] < colours.weight[200] < colours.weight[0]


def test_colorization_is_its_equation():
    torch.manual_seed(0)
    method = Colorization(Maps(), 16, stride=2).double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    counts = method.count(images)
    assert counts.sum() == 3 * 8 * 8
    method.set_frequencies(counts)
    lab = rgb_to_lab(images)
    maps = method.backbone.forward_features(lab[:, :1] / 50 - 1)
    log_z = method.decoder(maps).log_softmax(1)
    assert log_z.shape == (3, 313, 8, 8)  # the maps are 4 x 4
    true = lab[:, 1:].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    total = 0.0
    for n in range(3):
        for y in range(8):
            for x in range(8):
                t = (-(method.colours.bins - true[n, :, y, x]).square().sum(1) / 50).double()
                kept = t.topk(5).indices
                share = t[kept].softmax(0)
                total -= (method.colours.weight[t.argmax()] * (share * log_z[n, kept, y, x]).sum()).item()
    assert method(images).item() == pytest.approx(total / (3 * 64), rel=1e-6)


def test_the_encoder_of_colours_sees_the_lightness_alone():
    lab = torch.cat([torch.rand(2, 1, 16, 16) * 20 + 50, torch.rand(2, 2, 16, 16) * 20], 1)
    grey = torch.cat([lab[:, :1], torch.zeros(2, 2, 16, 16)], 1)
    coloured, grey = lab_to_rgb(lab), lab_to_rgb(grey)
    method = Colorization(Maps(3), 16, channels=3).eval()
    torch.testing.assert_close(method.embed(coloured), method.embed(grey), rtol=0, atol=1e-3)
    painted = rgb_to_lab(method.colorize(coloured))
    torch.testing.assert_close(method.colorize(grey), method.colorize(coloured), rtol=0, atol=1e-2)
    inside = (method.colorize(coloured) > 0.001).all(1) & (method.colorize(coloured) < 0.999).all(1)
    assert inside.float().mean() > 0.1
    torch.testing.assert_close(painted[:, 0][inside], lab[:, 0][inside], rtol=0, atol=0.1)


def test_split_brain_is_its_equations():
    torch.manual_seed(0)
    method = SplitBrain(Maps(1), Maps(2), 16, lightness_bins=10).double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    lab = rgb_to_lab(images)
    cells = lab.unfold(2, 4, 4).unfold(3, 4, 4).mean((4, 5))  # (3, 3, 4, 4)
    log_z = method.colour_decoder(method.of_lightness.forward_features(lab[:, :1] / 50 - 1)).log_softmax(1)
    log_y = method.lightness_decoder(method.of_colour.forward_features(lab[:, 1:] / 110)).log_softmax(1)
    target, _ = method.colours.encode(cells[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2))
    colours = -(target * log_z.permute(0, 2, 3, 1).reshape(-1, 313)).sum(1).mean()
    bins = (cells[:, 0] / 10).floor().long()
    lightness = -log_y.gather(1, bins[:, None]).mean()
    torch.testing.assert_close(method(images), colours + lightness)
    whole = torch.cat([method.of_lightness(lab[:, :1] / 50 - 1), method.of_colour(lab[:, 1:] / 110)], 1)
    torch.testing.assert_close(method.embed(images), whole)


def test_each_half_of_split_brain_is_told_nothing_of_what_it_tells():
    method, lab = SplitBrain(Maps(1), Maps(2), 16).eval(), torch.rand(2, 3, 16, 16) * 20 + 40
    other = lab.clone()
    other[:, 1:] += 5
    assert torch.equal(method.colour_logits(lab, lab.dtype), method.colour_logits(other, lab.dtype))
    other = lab.clone()
    other[:, 0] += 5
    assert torch.equal(method.lightness_logits(lab, lab.dtype), method.lightness_logits(other, lab.dtype))


# --- pixels ---------------------------------------------------------------------------------------------------------------


def gpt(size: int = 4, colours: int = 6) -> ImageGPT:
    return ImageGPT(size, colours, width=8, depth=2, heads=2)


def test_image_gpt_is_its_equation():
    method, images = gpt().double().eval(), torch.rand(3, 3, 4, 4, dtype=torch.float64)
    method.fit_palette(images)
    near = (images[:, :, None] - method.palette.T[None, :, :, None, None]).square().sum(1).argmin(1).flatten(1)  # (N, 16)
    assert torch.equal(method.quantize(images)[:, 1:], near)
    losses = []
    for row in near:
        for t in range(16):  # each pixel from those before it alone
            before = torch.cat([torch.tensor([6]), row[:t]])[None]
            logits = method.model.encode(before, torch.ones_like(before))[0, -1] @ method.model.tokens.weight.T
            losses.append(-logits.log_softmax(0)[row[t]])
    torch.testing.assert_close(method(images), torch.stack(losses).mean())


def test_image_gpt_sees_no_later_pixel_and_completes_what_is_given():
    method, images = gpt().eval(), torch.rand(3, 3, 4, 4)
    method.fit_palette(images)
    tokens = method.quantize(images)
    assert torch.equal(method.quantize(method.paint(tokens)), tokens)
    first, again = (method.complete(images, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    other = method.complete(images, generator=torch.Generator().manual_seed(6))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(first[:, :, :2], method.paint(tokens)[:, :, :2])
    assert torch.equal(method.complete(images, 4), method.paint(tokens))
    changed = images.clone()
    changed[:, :, 3, 3] = 1 - changed[:, :, 3, 3]  # the last pixel is told, and seen by nothing
    torch.testing.assert_close(method.embed(images), method.embed(changed))


def test_the_palette_is_that_of_k_means():
    colours = torch.tensor([[0.1, 0.2, 0.3], [0.8, 0.1, 0.5], [0.4, 0.9, 0.9], [0.0, 0.9, 0.1]])
    own = torch.arange(4 * 16).remainder(4).view(4, 4, 4)
    images = (colours[own] + 0.02 * torch.rand(4, 4, 4, 1)).permute(0, 3, 1, 2)
    method = gpt(4, 4)
    found = []
    for seed in range(20):  # a seed may start with two pixels of one colour
        method.fit_palette(images, seed=seed)
        found.append((images - method.paint(method.quantize(images))).abs().max().item())
    assert min(found) < 0.02
    assert torch.equal(method.quantize(images)[:, 1:], method.quantize(images.clone())[:, 1:])


# --- local and global features --------------------------------------------------------------------------------------------


class Deep(nn.Sequential):
    """images (N, 3, 8, 8) -> maps (N, 5, 4, 4), then (N, 6, 2, 2), features (N, 6)."""

    def __init__(self):
        layers = [nn.Conv2d(3, 5, 2, 2), nn.Tanh(), nn.Conv2d(5, 6, 2, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)


def test_dim_is_its_equation():
    method = DIM(Deep(), "1", projection_dim=4, temperature=0.7, normalize=False).double().eval()
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    g = method.global_head(method.backbone(images))
    c = method.local_heads[0](nn.Sequential(*list(method.backbone)[:2])(images)).flatten(2)  # (N, D, P)
    s = torch.einsum("id,jdp->ijp", g, c) / 0.7
    losses = []
    for i in range(4):
        others = torch.cat([s[i, j] for j in range(4) if j != i])
        losses += [-(s[i, i, p] - torch.cat([s[i, i, p, None], others]).logsumexp(0)) for p in range(16)]
    torch.testing.assert_close(method(images), torch.stack(losses).mean())
    cosines = DIM(Deep(), "1", projection_dim=4).double().eval()
    cosines.load_state_dict(method.state_dict())
    g, c = nn.functional.normalize(g, dim=1), nn.functional.normalize(c, dim=1)
    want = info_nce(g, c.transpose(1, 2).flatten(0, 1), temperature=0.1, target=torch.arange(64).view(4, 16), normalize=False)
    torch.testing.assert_close(cosines(images), want)


def amdim_loss(a, c, clip, penalty):
    """a (N, D), c (N, P, D): a pair of the equation, with all scores at once."""
    n, count, width = c.shape
    s = torch.einsum("id,jpd->ijp", a, c) / width**0.5
    t = clip * torch.tanh(s / clip)
    losses = []
    for i in range(n):
        others = torch.cat([t[i, j] for j in range(n) if j != i])
        losses += [-(t[i, i, p] - torch.cat([t[i, i, p, None], others]).logsumexp(0)) for p in range(count)]
    return torch.stack(losses).mean() + penalty * s.square().mean()


@pytest.mark.parametrize("block", [None, 100])
def test_amdim_is_its_equation(block, monkeypatch):
    """Also where the scores are computed for a few rows at a time."""
    if block:
        monkeypatch.setattr(row_blocks, "CPU_BLOCK_ELEMENTS", block)
    method = AMDIM(Deep(), ("1", "3"), projection_dim=4, clip=2.0, penalty=0.3).double().eval()
    for p in method.parameters():
        p.data.mul_(3.0)  # scores that the tanh bends
    views = [torch.rand(4, 3, 8, 8, dtype=torch.float64) for _ in range(2)]
    torch.manual_seed(2)
    loss = method(*views)
    found = torch.autograd.grad(loss, tuple(method.parameters()))
    torch.manual_seed(2)
    chosen = torch.randint(4, (8,))
    want = 0.0
    for d, (mine, other) in enumerate((views, views[::-1])):
        g, of_mine = method.project(mine)
        _, of_other = method.project(other)
        one = torch.stack([of_mine[1][i, chosen[4 * d + i]] for i in range(4)])
        pairs = [(g, of_other[0]), (g, of_other[1]), (one, of_other[1])]
        want = want + sum(amdim_loss(a, c, 2.0, 0.3) for a, c in pairs) / 2
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(found, torch.autograd.grad(want, tuple(method.parameters())))


def test_scores_of_amdim_are_float32_under_autocast():
    a, c = torch.randn(4, 8), torch.randn(4, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = clipped_nce(a, c, 5.0, 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), amdim_loss(a.double(), c.double(), 5.0, 0.1), rtol=1e-5, atol=0)


def test_an_encoder_whose_layer_calls_no_hook_is_named():
    """A compiled encoder is asked by a probe with hooks, and calls none in the graph that it has then."""
    method = DIM(Deep(), "1", projection_dim=4)
    method.backbone.forward = lambda images: images.flatten(1)[:, :6]
    with pytest.raises(ValueError, match=r"DIM: layer '1' of the backbone was not called, .* compile the method"):
        method(torch.rand(3, 3, 8, 8))


def test_layers_are_found_by_their_names_and_nothing_stays_behind():
    backbone = Deep()
    method = AMDIM(backbone, ("1", "3"), projection_dim=4)
    assert [head[0].in_channels for head in method.local_heads] == [5, 6]
    method(torch.rand(3, 3, 8, 8), torch.rand(3, 3, 8, 8))
    assert not any(module._forward_hooks for module in backbone.modules())


MAKERS = {
    "split_brain": (lambda: SplitBrain(Maps(1), Maps(2), 8), lambda: torch.rand(5, 3, 8, 8)),
    "image_gpt": (gpt, lambda: torch.rand(5, 3, 4, 4)),
    "dim": (lambda: DIM(Deep(), "1", projection_dim=4), lambda: torch.rand(5, 3, 8, 8)),
    "colorization": (lambda: Colorization(Maps(), 8), lambda: torch.rand(5, 3, 8, 8)),
}


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_reach_all_parameters_and_the_state_returns(name):
    make, given = MAKERS[name]
    method, x = make(), given()
    method(x).backward()
    for key, p in method.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0, key
    other = make()
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    other.load_state_dict(method.state_dict())
    torch.manual_seed(4)
    first = method.eval()(x)
    torch.manual_seed(4)
    assert torch.equal(first, other.eval()(x)) and torch.equal(method.embed(x), other.embed(x))


@pytest.mark.parametrize("name", ["colorization", "split_brain"])
def test_images_may_have_a_gradient(name):
    """As those of a checkpointed method: what is asked for is a constant, what the encoders see is not."""
    make, given = MAKERS[name]
    images = given().requires_grad_()
    make()(images).backward()
    assert images.grad.isfinite().all() and images.grad.abs().sum() > 0


@pytest.mark.parametrize("name", MAKERS)
def test_half_precision_is_close(name):
    make, given = MAKERS[name]
    method, x = make().eval(), given()
    torch.manual_seed(1)
    whole = method(x)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        half = method(x)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.02)


REFUSED = [
    (lambda: DIM(Deep(), "layer2"), ValueError, "DIM: layer must be names of layers .* such as 0, 1, 2"),
    (lambda: DIM(Deep(), "5"), ValueError, "DIM: layer must be names of layers that give maps"),
    (lambda: DIM(Deep(), None), TypeError, "DIM: layer"),
    (lambda: AMDIM(Deep(), "1"), TypeError, "AMDIM: layers"),
    (lambda: AMDIM(Deep(), ("1",), clip=0.0), ValueError, "AMDIM: clip"),
    (lambda: AMDIM(Deep(), ("1",))(torch.rand(2, 3, 8, 8), torch.rand(3, 3, 8, 8)), ValueError, "AMDIM: view0 and view1"),
    (lambda: DIM(Deep(), "1")(torch.rand(1, 3, 8, 8)), ValueError, "DIM: images .* at least 2"),
    (lambda: SplitBrain(Maps(1), Maps(3), 8), ValueError, "SplitBrain: of_colour must .* image_size 8 and 2 channels"),
    (lambda: SplitBrain(Maps(1), None, 8), TypeError, "SplitBrain: of_colour"),
    (lambda: SplitBrain(Maps(1), Maps(2), 8, lightness_bins=0), ValueError, "SplitBrain: lightness_bins"),
    (lambda: ImageGPT(4, 6, width=9, heads=2), ValueError, "ImageGPT: width must be a multiple of heads"),
    (lambda: ImageGPT(4, 6, layer=9), ValueError, "ImageGPT: layer"),
    (lambda: gpt()(torch.rand(2, 3, 8, 8)), ValueError, r"ImageGPT: images .* \(N, 3, 4, 4\)"),
    (lambda: gpt(4, 60).fit_palette(torch.rand(1, 3, 4, 4)), ValueError, "ImageGPT: images .* palette_size 60"),
    (lambda: gpt().complete(torch.rand(1, 3, 4, 4), 5), ValueError, "ImageGPT: rows"),
    (lambda: Colorization(nn.Flatten(), 8), ValueError, "Colorization: backbone .* without forward_features"),
    (lambda: Colorization(Maps(3), 8), ValueError, "Colorization: backbone .* fails on images of image_size 8 and 1 channels"),
    (lambda: Colorization(Maps(), 8, uniform=0.0), ValueError, "Colorization: uniform"),
    (lambda: Colorization(Maps(), 8, uniform=1.5), ValueError, "Colorization: uniform"),
    (lambda: Colorization(Maps(), 8, temperature=0), ValueError, "Colorization: temperature"),
    (lambda: Colorization(Maps(), 8)(torch.rand(2, 3, 16, 16)), ValueError, r"Colorization: images .* \(N, 3, 8, 8\)"),
    (lambda: Colorization(Maps(), 8)(torch.rand(2, 1, 8, 8)), ValueError, r"Colorization: images .* \(N, 3, 8, 8\)"),
    (lambda: Colorization(Maps(), 8)(torch.rand(2, 3, 8, 8).double()), TypeError, "Colorization: images"),
    (lambda: Colorization(Maps(), 8, stride=3), ValueError, "Colorization: stride must be a power of 2 or at least the 4 pixels"),
    (lambda: Colorization(Maps(), 8).set_frequencies(torch.zeros(313)), ValueError, "set_frequencies: counts must be .* not all 0"),
    (lambda: Colorization(Maps(), 8).set_frequencies(-torch.ones(313)), ValueError, "set_frequencies: counts must be finite, at l"),
    (
        lambda: Colorization(Maps(), 8).set_frequencies(torch.ones(5)),
        ValueError,
        r"frequencies: counts must have shape \(313,\)",
    ),
    (lambda: DIM(Deep(), "1", feature_dim=7)(torch.rand(2, 3, 8, 8)), ValueError, "DIM: the backbone gives 6 features, expected"),
    (lambda: gpt().fit_palette(torch.rand(2, 3, 4, 4) / 0), ValueError, "ImageGPT: images must be finite"),
    (lambda: gpt().fit_palette(torch.rand(2, 3, 4, 4), iterations=1.5), TypeError, "ImageGPT: iterations"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals(number):
    call, error, words = REFUSED[number]
    with pytest.raises(error, match=words):
        call()
