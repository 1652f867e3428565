"""The settings of a method: one field says all about an option, and settings that earlier versions stored are still read."""

from dataclasses import FrozenInstanceError, dataclass, fields
from pathlib import Path
from typing import Annotated

import pytest

from tests.methods.test_image import needs_train

pytestmark = needs_train
DOCS = Path(__file__).resolve().parents[2] / "docs"

#: The methods of the versions before each method had settings of its own.
EARLIER = "simclr supcon instdisc cmc nnclr cpc moco moco_v3 byol simsiam mean_teacher mae simmim inpainting clip siglip simcse"
#: What they stored with a run of ``inpainting``: the settings of all methods.
OF_ALL_METHODS = {
    "method": "inpainting",
    "data": "digits",
    "backbone": "conv",
    "image_size": 16,
    "patch_size": None,
    "channels": 1,
    "pixel_range": (0.0, 4095.0),
    "epochs": 3,
    "batch_size": 64,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 1e-4,
    "warmup_epochs": 1.0,
    "temperature": 0.5,
    "hidden_dim": None,
    "projection_dim": 128,
    "queue_size": None,
    "head": "mlp",
    "momentum": 0.99,
    "final_momentum": 1.0,
    "bn_splits": 1,
    "symmetric": False,
    "labels_per_class": 10,
    "consistency_weight": 100.0,
    "pooler": "mean",
    "mask_ratio": 0.25,
    "mask_size": None,
    "norm_pix_loss": False,
    "decoder_dim": 64,
    "decoder_depth": 2,
    "corruption": "noise",
    "sigma": 0.3,
    "min_scale": 0.8,
    "jitter": 0.5,
    "knn_every": 4,
    "knn_k": 20,
    "knn_t": 0.1,
    "seed": 7,
}


def test_the_docs_have_todays_options():
    """After a change of an option: python -m fastssl.train.option_table"""
    from fastssl.train.option_table import written

    page = (DOCS / "options.md").read_text(encoding="utf-8")
    assert written(page) == page
    assert page.count("| `--decoder-depth` | blocks of the decoder | 2 | mae, audio_mae |") == 1


def test_every_method_takes_its_own_defaults():
    from fastssl.train.recipes import RECIPES
    from fastssl.train.settings import settings_of

    for name, recipe in RECIPES.items():
        config = recipe.settings()
        assert config.method == name
        for setting in settings_of(recipe.settings).values():
            assert setting.refusal(getattr(config, setting.name)) is None
            machine = (name, setting.name) == ("simcse", "backbone")  # the default depends on what is installed
            assert not setting.option.default or setting.default is None or machine
            if setting.option.only_with is not None:
                other, value = setting.option.only_with
                assert value in (settings_of(recipe.settings)[other].option.choices or ("vit",))
            if setting.option.unused_at is not None:
                other, value = setting.option.unused_at
                settings = settings_of(recipe.settings)
                assert value in settings if isinstance(value, str) else settings[other].refusal(value) is None
        with pytest.raises(FrozenInstanceError):
            config.seed = 1


def test_a_subclass_keeps_an_option_or_replaces_it():
    from fastssl.train.settings import Option, TrainConfig, settings_of

    @dataclass(frozen=True, kw_only=True)
    class Base(TrainConfig):
        width: Annotated[int, Option("width", least=2)] = 4
        depth: Annotated[int, Option("depth", least=1)] = 1

    @dataclass(frozen=True, kw_only=True)
    class Further(Base):
        width: int = 8
        depth: Annotated[int, Option("blocks", least=0, most=3)] = 0
        hidden: int = 5

    settings = settings_of(Further)
    assert settings["width"].help("", "") == "width (default: 8)" and settings["width"].refusal(1) == "must be at least 2, got 1"
    assert settings["depth"].help("", "") == "blocks (default: 0)" and settings["depth"].refusal(4) == "must be at most 3, got 4"
    assert settings["depth"].refusal("two") == "is 'two'" and settings["depth"].refusal(None) == "is None"
    assert "hidden" not in settings and "method" not in settings and settings_of(Base)["width"].default == 4
    assert list(settings)[:2] == ["data", "epochs"]


def test_settings_stored_for_all_methods_are_read_as_those_of_the_one():
    from fastssl.train.checkpoints import config_of
    from fastssl.train.options import refused_setting
    from fastssl.train.recipes import RECIPES

    for name in EARLIER.split():
        recipe = RECIPES[name]
        stored = {**OF_ALL_METHODS, "method": name}
        read = {**stored, "negatives": "local"}  # which was all that there was
        config = config_of({"fastssl": {"config": stored}})
        own = {field.name: read.get(field.name, field.default) for field in fields(recipe.settings)}  # or came later
        assert type(config) is recipe.settings and vars(config) == own
        assert refused_setting(stored) is None
        other = next(key for key in stored if key not in own)
        assert refused_setting({**stored, other: object()}) is None
        assert refused_setting({**stored, "batch_size": 1}) == "its setting batch_size must be at least 2, got 1"
    assert refused_setting({**OF_ALL_METHODS, "sigma": -1.0}) == "its setting sigma must be above 0, got -1.0"
    assert refused_setting({**OF_ALL_METHODS, "channels": None}) == "its setting channels is None"
    assert refused_setting({**OF_ALL_METHODS, "pixel_range": [5.0, 1.0]}) == "its setting pixel_range is [5.0, 1.0]"
    swapped = refused_setting({**OF_ALL_METHODS, "pixel_range": (5.0, 1.0)})
    assert swapped == "its setting pixel_range LOW must be below HIGH, got '5.0,1.0'"
    other = refused_setting({**OF_ALL_METHODS, "corruption": "rain"})
    assert other == "its setting corruption must be one of blocks, noise, got 'rain'"
