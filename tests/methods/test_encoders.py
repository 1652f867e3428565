"""Encoders of any kind: their width by a probe, inputs of any shape, outputs of any kind, the loss in a dict."""

import copy
import inspect
import pickle
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from fastssl.methods import (
    BYOL,
    CLIP,
    CMC,
    CPC,
    NNCLR,
    BarlowTwins,
    InstDisc,
    LeJEPA,
    MeanTeacher,
    MoCo,
    MoCoV3,
    SimCLR,
    SimSiam,
    SupCon,
    VICReg,
    VisionTransformer,
    return_dict,
)
from fastssl.methods._probe import find_feature_dim
from tests.support.compat_nets import library
from tests.support.formulas import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def conv(channels: int = 3, dims: int = 2, width: int = 6, *last: nn.Module) -> nn.Module:
    kind, pool = ((nn.Conv1d, nn.AdaptiveAvgPool1d), (nn.Conv2d, nn.AdaptiveAvgPool2d), (nn.Conv3d, nn.AdaptiveAvgPool3d))[dims - 1]
    return nn.Sequential(kind(channels, width, 3), pool(1), nn.Flatten(), *last)


class Lying(nn.Module):
    """As some of timm's models: ``num_features`` is the width before the last layer. That layer is registered first."""

    num_features = 96

    def __init__(self, channels: int):
        super().__init__()
        self.last, self.conv = nn.Linear(96, 11), nn.Conv2d(channels, 96, 3)

    def forward(self, x):
        return self.last(self.conv(x).mean((2, 3)))


class Mean(nn.Module):
    """The mean over dimension 1 of what a layer gives."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x)
        return (out[0] if isinstance(out, tuple) else out).mean(1)


class Deep(nn.Sequential):
    """Halves the sides six times without padding: nothing below 127 pixels passes."""

    def __init__(self):
        super().__init__(*(nn.Conv2d(2 if i == 0 else 3, 3, 3, 2) for i in range(6)), nn.Flatten(2), Mean(nn.Linear(1, 4)))


ENCODERS = {
    "1 channel": (lambda: conv(1), (1, 9, 7), 6),
    "5 channels, maps": (lambda: nn.Conv2d(5, 7, 3), (5, 8, 8), 7),
    "13 channels": (lambda: Lying(13), (13, 8, 8), 11),
    "pixels first": (lambda: nn.Sequential(nn.BatchNorm2d(4), *conv(4)), (4, 6, 6), 6),
    "volume": (lambda: conv(2, 3), (2, 5, 6, 7), 6),
    "volume, maps": (lambda: nn.Conv3d(1, 9, 3), (1, 5, 5, 5), 9),
    "signal": (lambda: conv(4, 1), (4, 50), 6),
    "signal, one place": (lambda: nn.Sequential(nn.Conv1d(4, 8, 3), nn.AdaptiveAvgPool1d(1)), (4, 50), 8),
    "vectors": (lambda: nn.Sequential(nn.Linear(37, 12), nn.ReLU(), nn.Linear(12, 5)), (37,), 5),
    "flat images": (lambda: tiny(1, 10), (1, 4, 4), 10),
    "sequence": (lambda: Mean(nn.GRU(3, 7, batch_first=True)), (11, 3), 7),
    "transformer": (lambda: Mean(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)), (5, 8), 8),
    "64-bit": (lambda: conv(3).double(), (3, 8, 8), 6),
    "patches": (lambda: VisionTransformer((12, 20), 4, 16, 1, 2, channels=2), (2, 12, 20), 16),
}


def views(shape: tuple[int, ...], encoder: nn.Module, batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(batch, *shape, dtype=next(encoder.parameters()).dtype)
    return x, x + 0.1 * torch.rand_like(x)


@pytest.mark.parametrize("name", ENCODERS)
def test_the_width_is_found_and_learned_through(name):
    make, shape, width = ENCODERS[name]
    encoder = make()
    method = SimCLR(encoder).to(next(encoder.parameters()).dtype)
    given = views(shape, encoder)
    assert method.feature_dim == width and method.embed(given[0]).shape == (6, width)
    method(*given).backward()
    for key, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), key


def test_widths_that_need_a_larger_image_or_tokens_or_are_on_no_device():
    assert find_feature_dim(Deep()) == 4
    assert find_feature_dim(Mean(nn.Embedding(9, 3))) == 3
    with torch.device("meta"):
        far = conv(7)
    assert find_feature_dim(far) == 6 and next(far.parameters()).device.type == "meta"
    compiled = []
    graph = torch.compile(conv(3), backend=lambda graph, _: compiled.append(graph) or graph.forward)
    assert find_feature_dim(graph) == 6 and not compiled


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_widths_of_timm():
    model = library("timm").create_model("mobilenetv3_small_050", num_classes=0, in_chans=2)
    width = model.eval()(torch.zeros(1, 2, 64, 64)).shape[1]
    assert find_feature_dim(model) == width != model.num_features
    fixed = library("timm.models.vision_transformer").VisionTransformer(48, 8, 2, num_classes=0, embed_dim=12, depth=1, num_heads=2)
    assert find_feature_dim(fixed) == 12


METHODS = {
    "simclr": lambda e: SimCLR(e),
    "supcon": lambda e: SupCon(e),
    "nnclr": lambda e: NNCLR(e, queue_size=8),
    "moco": lambda e: MoCo(e, queue_size=8, bn_splits=2),
    "moco_v3": lambda e: MoCoV3(e),
    "byol": lambda e: BYOL(e),
    "simsiam": lambda e: SimSiam(e, projection_dim=8),
    "mean_teacher": lambda e: MeanTeacher(e, 3),
    "instdisc": lambda e: InstDisc(e, 9),
    "barlow_twins": lambda e: BarlowTwins(e, projection_dim=8),
    "vicreg": lambda e: VICReg(e, projection_dim=8),
    "lejepa": lambda e: LeJEPA(e, projection_dim=8, slices=8),
    "cmc": lambda e: CMC([e, copy.deepcopy(e)]),
}


def arguments(name: str, shape: tuple[int, ...], encoder: nn.Module) -> tuple[torch.Tensor, ...]:
    a, b = views(shape, encoder)
    labels = torch.arange(6) % 3
    return {"instdisc": (a, torch.arange(6)), "supcon": (a, b, labels), "mean_teacher": (a, b, labels)}.get(name, (a, b))


@pytest.mark.parametrize("kind", ["volume", "signal", "vectors", "1 channel"])
@pytest.mark.parametrize("name", METHODS)
def test_methods_of_equal_views_take_any_shape(name, kind):
    make, shape, width = ENCODERS[kind]
    method = METHODS[name](make())
    given = arguments(name, shape, make())
    method(*given).backward()
    learns = [p for p in method.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learns)
    embedded = method.eval().embed(*given[: 2 if name == "cmc" else 1])
    assert embedded.shape == (6, width * (2 if name == "cmc" else 1)) and embedded.isfinite().all()


def test_parts_of_sequences_and_pairs_may_be_anything_too():
    CPC(conv(2, 1), steps=(1, 2))(torch.rand(3, 5, 2, 8)).backward()
    CPC(nn.Linear(4, 6), steps=(1,))(torch.rand(3, 5, 4)).backward()
    method = CLIP(conv(1, 3), Mean(nn.Embedding(20, 5)))
    assert (method.image_dim, method.text_dim) == (6, 5)
    method(torch.rand(4, 1, 5, 5, 5), torch.randint(20, (4, 7))).backward()


class Restless(nn.Module):
    """Counts its calls in a buffer and draws random numbers, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.frozen = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(4))
        self.frozen.eval()

    def forward(self, x):
        self.calls += 1
        self.last = torch.rand(4)
        return self.frozen(self.norm(self.conv(x))).mean((2, 3)) + torch.rand(4)


@pytest.mark.parametrize("make", [SimCLR, BYOL, lambda e: MoCo(e, queue_size=8)])
def test_a_probe_leaves_no_trace(make):
    encoder, seen = Restless(), []
    hook = encoder.register_forward_hook(lambda *_: seen.append(_[2].shape))
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    same = {key: (value, value._version) for key, value in (*encoder.named_parameters(), *encoder.named_buffers())}
    modes = [module.training for module in encoder.modules()]
    torch.manual_seed(3)
    find_feature_dim(encoder)
    after = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(3))
    make(encoder)
    assert seen and list(encoder._forward_hooks) == [hook.id]
    for key, value in (*encoder.named_parameters(), *encoder.named_buffers()):
        assert value is same[key][0] and torch.equal(value, state[key]), key
        assert key == "calls" or value._version == same[key][1], key
        assert value.requires_grad == isinstance(value, nn.Parameter) and value.grad is None
    assert [module.training for module in encoder.modules()] == modes == [True, True, True, False]


class Returns(nn.Module):
    """A convolutional encoder that returns ``what(features, maps)``; ``other`` of them in training."""

    def __init__(self, what, other=None):
        super().__init__()
        self.conv, self.what, self.other = nn.Conv2d(3, 4, 3), what, other

    def forward(self, x):
        maps = self.conv(x)
        what = self.other if self.training and self.other else self.what
        return what(maps.mean((2, 3)), maps)


Pair = type("Pair", (tuple,), {"_asdict": lambda self: dict(zip(("features", "aux"), self, strict=True))})
TAKEN = {
    "dict": (lambda f, m: {"pooler_output": f, "last_hidden_state": m}, lambda f, m: f),
    "one key": (lambda f, m: {"anything": f, "none": None}, lambda f, m: f),
    "out": (lambda f, m: {"aux": f, "out": 2 * m}, lambda f, m: 2 * f),
    "named tuple": (lambda f, m: Pair((f, m)), lambda f, m: f),
    "tuple": (lambda f, m: (f,), lambda f, m: f),
    "list": (lambda f, m: [None, f, ()], lambda f, m: f),
    "maps": (lambda f, m: m, lambda f, m: f),
    "tokens": (lambda f, m: {"last_hidden_state": m.flatten(2).transpose(1, 2), "attentions": f}, lambda f, m: f),
    "1 x 1": (lambda f, m: f[:, :, None, None], lambda f, m: f),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_encoders_return_is_taken_by_rule(name):
    what, wanted = TAKEN[name]
    encoder, images = Returns(what), torch.rand(5, 3, 8, 8)
    method = SimSiam(encoder, projection_dim=8)
    maps = encoder.conv(images)
    torch.testing.assert_close(method.embed(images), wanted(maps.mean((2, 3)), maps))
    changes = SimCLR(Returns(lambda f, m: f, what))
    assert changes.feature_dim == 4 and changes(images, images).isfinite()


REFUSED = {
    "keys": (lambda f, m: {"a": f, "b": m}, r"a mapping with one tensor or one of the keys pooler_output.*with the keys 'a', 'b'"),
    "two tensors": (lambda f, m: (f, m), r"or a tuple with one tensor, got dict|tuple of \(a tensor \(\d, 4\)"),
    "nothing": (lambda f, m: None, "got NoneType"),
    "tokens": (lambda f, m: m.flatten(2), r"features \(N, D\) or maps \(N, D, H, W\), got shape .*nn.Flatten"),
    "classes": (lambda f, m: f.argmax(1, keepdim=True), "floating features, got a tensor"),
    "a row": (lambda f, m: f[0], r"a row for each of \d inputs, got shape \(4,\)"),
    "one less": (lambda f, m: f[1:], r"a row for each of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name):
    what, words = REFUSED[name]
    with pytest.raises(ValueError, match=f"BYOL: the backbone must return.*{words}"):
        BYOL(Returns(what))
    method = BYOL(Returns(lambda f, m: f, what))
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with pytest.raises(ValueError, match=f"BYOL: the backbone must return.*{words}"):
        method(torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8))
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.parametrize("pooler", [True, False])
def test_outputs_of_transformers(pooler):
    transformers = library("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=24, patch_size=8, num_channels=1, **sizes)
    encoder, images = transformers.ViTModel(config, add_pooling_layer=pooler), torch.rand(4, 1, 24, 24)
    method = MoCoV3(encoder).eval()
    given = encoder(images)
    torch.testing.assert_close(method.embed(images), given.pooler_output if pooler else given.last_hidden_state.mean(1))
    method.train()(images, images).backward()
    with pytest.raises(ValueError, match="24"):
        method(torch.rand(4, 1, 32, 32), torch.rand(4, 1, 32, 32))


def nothing_fits() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(17, 3))
    model.num_features = 4
    return model


IMAGES, FAR = torch.rand(4, 3, 8, 8), torch.rand(4, 3, 4, 4, device="meta")
BAD = [
    (
        lambda: SimCLR(nothing_fits()),
        ValueError,
        r"SimCLR: no probe passed the backbone, pass feature_dim; its num_features is 4, .*\(2, 2, 32, 32\), .*\(2, 2, 512, 512\), "
        r"\(2, 17\), \(2, 16, 17\); the last one gave RuntimeError",
    ),
    (lambda: MoCo(nn.LazyConv2d(3, 3), queue_size=4), ValueError, r"MoCo: the backbone has lazy parameters \(weight\)"),
    (lambda: BYOL(nn.LazyLinear(3), 3), ValueError, r"BYOL: the backbone has lazy parameters"),
    (lambda: SimCLR("resnet18"), TypeError, "SimCLR: backbone must be a torch.nn.Module, got str"),
    (lambda: BYOL(nn.Flatten), TypeError, "BYOL: backbone must be a torch.nn.Module, got the class Flatten"),
    (lambda: CLIP(conv(), lambda x: x), TypeError, "CLIP: text_encoder must be a torch.nn.Module, got function"),
    (lambda: CMC([conv(), None]), TypeError, r"CMC: backbones\[1\] must be a torch.nn.Module, got NoneType"),
    (lambda: CMC([conv(), conv()], [6, 0]), ValueError, r"CMC: feature_dims\[1\] must be in \[1, "),
    (lambda: SimCLR(conv(), 6.0), TypeError, "SimCLR: feature_dim must be a whole number, got float"),
    (
        lambda: SimCLR(conv(1))(IMAGES, IMAGES),
        ValueError,
        r"SimCLR: .*\(8, 3, 8, 8\).*: its first convolution takes \(B, 1, H, W\)",
    ),
    (lambda: BYOL(conv(3, 3))(IMAGES, IMAGES), ValueError, r"BYOL: .*: its first convolution takes \(B, 3, D, H, W\)"),
    (lambda: MoCo(tiny(), queue_size=4)(IMAGES, IMAGES), ValueError, "MoCo: .* its first linear layer takes 48 features"),
    (lambda: SimCLR(conv())(IMAGES.double(), IMAGES.double()), TypeError, "SimCLR: .*float64 .*its parameters are torch.float32"),
    (
        lambda: SimCLR(conv())((9 * IMAGES).byte(), (9 * IMAGES).byte()),
        TypeError,
        "SimCLR: .*uint8 .*its parameters are torch.float32",
    ),
    (lambda: SimCLR(tiny(3))(FAR, FAR), ValueError, "SimCLR: .* on meta: its parameters are on cpu"),
    (lambda: BYOL(conv())(IMAGES, IMAGES.double()), TypeError, "BYOL: view0 and view1 must have the same dtype and device"),
    (lambda: BYOL(conv())(IMAGES, IMAGES.to_sparse()), TypeError, "BYOL: view1 must be a dense tensor"),
    (lambda: SimSiam(conv())(IMAGES[:1], IMAGES[:1]), ValueError, "SimSiam: view0 must have shape .* B of at least 2"),
    (lambda: SimSiam(conv())(IMAGES[:, :0], IMAGES[:, :0]), ValueError, r"SimSiam: view0 must have shape .*got \(4, 0, 8, 8\)"),
    (lambda: SimCLR(VisionTransformer(8, 4, 8, 1, 2))(IMAGES[..., :4], IMAGES[..., :4]), ValueError, r"images must have the shape"),
    (
        lambda: CLIP(conv(), Mean(nn.Embedding(9, 3)))(IMAGES, torch.full((4, 5), 9)),
        ValueError,
        "CLIP: the text_encoder failed on tokens .*: its embedding takes tokens from 0 to 8",
    ),
    (lambda: return_dict(len), TypeError, "return_dict: method must be a torch.nn.Module"),
]


@pytest.mark.parametrize("call, error, words", BAD)
def test_encoders_and_inputs_that_do_not_fit_are_refused_with_a_message(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("size", [(48, 48), (33, 33), (32, 36), (31, 31)])
def test_a_transformer_refuses_images_of_another_size(size):
    with pytest.raises(
        ValueError, match=r"VisionTransformer: images must have the shape of the backbone, \(N, 3, 32, 32\), got \(2"
    ):
        VisionTransformer(32, 8, 32, 1, 2)(torch.rand(2, 3, *size))


def test_an_error_of_the_encoder_itself_stays_its_own():
    def broken(features, maps):
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match=r"^out of luck$"):
        SimCLR(Returns(lambda f, m: f, broken))(IMAGES, IMAGES)


def test_memory_format_and_nan_are_the_encoders_matter():
    method = SimCLR(conv()).eval()
    usual, last = method(IMAGES, IMAGES.flip(3)), [x.to(memory_format=torch.channels_last) for x in (IMAGES, IMAGES.flip(3))]
    torch.testing.assert_close(method(*last), usual)
    spoiled = IMAGES.clone()
    spoiled[0, 0, 0, 0] = torch.nan
    assert method(spoiled, IMAGES).isnan()


@pytest.mark.parametrize("name", METHODS)
def test_the_loss_in_a_dict(name):
    make, shape, _ = ENCODERS["vectors"]
    encoder = make()
    torch.manual_seed(1)
    plain = METHODS[name](encoder)
    method = copy.deepcopy(plain)
    given = arguments(name, shape, encoder)
    assert return_dict(method) is method and return_dict(method) is method
    torch.manual_seed(2)
    wanted = plain(*given)
    for other in (pickle.loads(pickle.dumps(method)), method):
        torch.manual_seed(2)
        got = other(*given)
        assert list(got) == ["loss"] and torch.equal(got["loss"], wanted)
    got["loss"].backward()
    assert method.state_dict().keys() == plain.state_dict().keys()
    assert inspect.signature(method.forward) == inspect.signature(plain.forward)


@pytest.mark.skipif(find_spec("accelerate") is None or find_spec("transformers") is None, reason="accelerate is not installed")
def test_transformers_trainer_takes_a_method(tmp_path):
    transformers = library("transformers")
    data = [{"view0": torch.rand(37), "view1": torch.rand(37), "name": i} for i in range(8)]
    method = return_dict(BYOL(ENCODERS["vectors"][0]()))
    options = {"per_device_train_batch_size": 4, "num_train_epochs": 2, "report_to": "none", "use_cpu": True}
    settings = transformers.TrainingArguments(
        str(tmp_path), label_names=["view1"], prediction_loss_only=True, per_device_eval_batch_size=4, **options
    )
    trainer = transformers.Trainer(method, settings, train_dataset=data, eval_dataset=data)
    trainer.train()
    assert int(method.step) == 4 and trainer.evaluate()["eval_loss"] > 0
