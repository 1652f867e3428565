"""Recipes of the methods that learn from images alone, scored by weighted kNN and a linear probe on ``method.embed(images)``.

Data, augmentation and evaluation are imported when they are used: ``fastssl train --help`` needs none of them.
"""

from dataclasses import replace

from torch import Tensor, nn

from fastssl.methods import CMC, CPC, NNCLR, InstDisc, SimCLR, SupCon
from fastssl.methods.cpc import patch_columns
from fastssl.train import Recipe, TrainConfig, UsageError

PIXELS = ("channels", "pixel_range")
VIEWS = ("backbone", "image_size", "patch_size", *PIXELS, "min_scale", "jitter", "knn_k", "knn_t")
HEADS = ("temperature", "hidden_dim", "projection_dim")


def load_images(config: TrainConfig):
    from fastssl.train.data import load_data

    return load_data(config.data, config.image_size, config.channels, config.pixel_range)


def two_views(config: TrainConfig, data) -> nn.Module:
    from fastssl.train.augment import TwoViews

    kinds = {"mirror": data.mirror, "colour": data.colour and data.channels == 3, "hue": data.hue}
    return TwoViews(data.image_size, min_scale=config.min_scale, strength=config.jitter, **kinds)


def backbone(config: TrainConfig, data) -> nn.Module:
    from fastssl.train.backbones import build_backbone

    return build_backbone(config.backbone, data.image_size, data.channels, patch_size=config.patch_size)


def image_scores(method: nn.Module, data, config: TrainConfig, *, device, workers: int, most: int | None, full: bool) -> dict:
    """kNN accuracy on test images (``full``: and the linear probe's), of ``most`` images a half, and the collapse watch of the
    test images' embeddings; without labels only the watch, without test images that of the training images. Classes of which no
    file can be read do not count."""
    from fastssl.train.data import limited
    from fastssl.train.evaluate import collapse_watch, embed, knn_accuracy, linear_probe_accuracy

    halves = [half if most is None else limited(half, most) for half in (data.train, data.test) if len(half)]
    kept = halves if data.labelled else halves[-1:]
    *train, test = (embed(method, half, data.image_size, device=device, workers=workers) for half in kept)
    watch = collapse_watch(test[0])
    if not (data.labelled and len(train[0][1].unique()) > 1 and len(test[1])):
        return watch
    knn = knn_accuracy(train[0], test, len(data.class_names), config.knn_k, config.knn_t)
    return {"knn": knn} | ({"probe": linear_probe_accuracy(train[0], test)} if full else {}) | watch


def image_points(method: nn.Module, data, *, device, workers: int) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """features (N, D), labels (N,) of the test images (of the training images where there are none), and the class names."""
    from fastssl.train.evaluate import embed

    half = data.test if len(data.test) else data.train
    return *embed(method, half, data.image_size, device=device, workers=workers), data.class_names


def heads(config: TrainConfig) -> dict:
    return {name: getattr(config, name) for name in HEADS}


def load_labelled(config: TrainConfig):
    """Images whose classes are the keys of SupCon."""
    data = load_images(config)
    if len(data.train.labels.unique()) < 2:
        one = f"all {len(data.train)} training images are of one; a class is a subfolder with its images"
        raise UsageError(f"--data {config.data}: {config.method} learns from classes, and {one}")
    return data


def load_indexed(config: TrainConfig):
    """Images whose training batches also say which samples they hold."""
    data = load_images(config)
    data.train.gives_index = True
    return data


def instdisc(config: TrainConfig, data) -> nn.Module:
    options = {"projection_dim": config.projection_dim, "temperature": config.temperature}
    return InstDisc(backbone(config, data), len(data.train), **options)


def fill_bank(module) -> None:
    """InstDisc's bank holds the untrained encoder's embeddings before the first epoch."""
    from fastssl.train.augment import as_float
    from fastssl.train.data import batches
    from fastssl.train.evaluate import centre

    for images, _, index in batches(module.data.train, module.config.batch_size, workers=module.workers):
        if len(images) > 1:
            whole = centre(as_float(images.to(module.device)), module.data.image_size)
            module.method.fill_bank(whole, index.to(module.device))


def nnclr(config: TrainConfig, data) -> nn.Module:
    """A queue of half the training images: a sample's own earlier embedding is gone by the next epoch for most."""
    size = config.queue_size or min(65536, max(1, len(data.train) // 2))
    return NNCLR(backbone(config, data), queue_size=size, **heads(config))


def cmc(config: TrainConfig, data) -> nn.Module:
    from fastssl.train.augment import lab_views

    if data.channels != 3:
        raise UsageError(f"--channels {data.channels}: cmc parts colour images into lightness and colour, which needs 3")
    return CMC([backbone(config, data), backbone(config, data)], split=lab_views, **heads(config))


def cmc_arguments(module, batch: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """The lightness of one view and the colour of the other."""
    view0, view1 = module.views(batch[0])
    return module.method.split(view0)[0], module.method.split(view1)[1]


def patches(images: Tensor) -> Tensor:
    """Patches of a quarter of the side, overlapping by half from top to bottom: 4 columns of 7."""
    side = images.shape[-1] // 4
    return patch_columns(images, side, side // 2, side)


def cpc(config: TrainConfig, data) -> nn.Module:
    """The encoder is made for the patches, a quarter of the side, and sees nothing else."""
    from fastssl.train.backbones import build_backbone

    options = {"projection_dim": config.projection_dim, "temperature": config.temperature}
    encoder = build_backbone(config.backbone, data.image_size // 4, data.channels, patch_size=config.patch_size)
    return CPC(encoder, steps=(2, 3, 4), split=patches, **options)  # 1 step on, half of the patch is known


SIMCLR = Recipe(
    load=load_images,
    build=lambda config, data: SimCLR(backbone(config, data), **heads(config)),
    augment=two_views,
    arguments=lambda module, batch: module.views(batch[0]),
    monitor=image_scores,
    points=image_points,
    scores={"knn": ("kNN", "weighted kNN, k={config.knn_k}"), "probe": ("probe", "linear probe")},
    watch={"std": ("std", "spread, 0 is collapse", ".3f"), "rank": ("rank", "effective rank", ".1f")},
    options=(*VIEWS, *HEADS),
)

SUPCON = replace(
    SIMCLR,
    load=load_labelled,
    build=lambda config, data: SupCon(backbone(config, data), **heads(config)),
    arguments=lambda module, batch: (*module.views(batch[0]), batch[1]),
    defaults={"temperature": 0.1},
    loss="supervised contrastive",
)
INSTDISC = replace(
    SIMCLR,
    load=load_indexed,
    build=instdisc,
    arguments=lambda module, batch: (module.views.one(batch[0]), batch[2]),
    options=(*VIEWS, "temperature", "projection_dim"),
    defaults={"temperature": 0.1, "epochs": 12},
    prepare=fill_bank,
    loss="instance discrimination",
)
NNCLR_ = replace(
    SIMCLR, build=nnclr, options=(*VIEWS, *HEADS, "queue_size"), defaults={"temperature": 0.1}, loss="nearest-neighbour InfoNCE"
)
CMC_ = replace(SIMCLR, build=cmc, arguments=cmc_arguments, defaults={"temperature": 0.1, "epochs": 6}, loss="InfoNCE")
CPC_ = replace(
    SIMCLR,
    build=cpc,
    arguments=lambda module, batch: (module.views.one(batch[0]),),
    options=(*VIEWS, "temperature", "projection_dim"),
    defaults={"temperature": 0.1, "batch_size": 64, "lr": 2e-3, "epochs": 3},
    loss="InfoNCE",
)

IMAGE_RECIPES: dict[str, Recipe] = {
    "simclr": SIMCLR,
    "supcon": SUPCON,
    "instdisc": INSTDISC,
    "cmc": CMC_,
    "nnclr": NNCLR_,
    "cpc": CPC_,
}
