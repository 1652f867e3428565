"""The methods that ``fastssl train`` knows. Each has a module here, of the method's name, with its settings and its ``RECIPE``."""

from importlib import import_module

from fastssl.train.recipe import Recipe

METHODS = (
    "simclr",
    "supcon",
    "instdisc",
    "cmc",
    "nnclr",
    "cpc",
    "moco",
    "moco_v3",
    "byol",
    "simsiam",
    "mean_teacher",
    "entropy_minimization",
    "fixmatch",
    "noisy_student",
    "dino",
    "ibot",
    "swav",
    "barlow_twins",
    "vicreg",
    "lejepa",
    "deepcluster",
    "mae",
    "simmim",
    "inpainting",
    "colorization",
    "dim",
    "amdim",
    "ijepa",
    "rotnet",
    "clip",
    "siglip",
    "simcse",
    "bert",
    "frame_order",
    "gpt",
    "t5",
    "cola",
    "multi_format",
    "audio_mae",
    "cpc_sound",
)
RECIPES: dict[str, Recipe] = {name: import_module(f"{__name__}.{name}").RECIPE for name in METHODS}
