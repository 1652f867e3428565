"""Runs that nobody trained: a checkpoint of a method with random weights, as ``fastssl train`` would have written it."""

from dataclasses import asdict
from pathlib import Path

import torch


def write_run(folder: Path, name: str, **options) -> torch.nn.Module:
    """Writes ``folder/last.ckpt`` -> the method of which it holds the weights, in eval mode. ``options`` are settings of it."""
    from fastssl.train.encoders import StoredData, StoredHalf
    from fastssl.train.recipes import RECIPES

    recipe = RECIPES[name]
    config = recipe.settings(**options)
    size, classes = config.image_size or 32, ("one", "two")
    stored = StoredData(config.data, size, config.channels, classes, StoredHalf(100), StoredHalf(0))
    torch.manual_seed(3)
    method = recipe.build(config, recipe.load(config) if recipe.needs_data else stored)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    row, half = {"epoch": 1, "loss": 1.0, "knn": 0.5}, {"count": 100, "classes": list(classes), "digest": ""}
    own = {"config": asdict(config), "history": [row], "image_size": size, "data": {"train": half, "test": half | {"count": 0}}}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {f"method.{name}": value for name, value in method.state_dict().items()}
    torch.save({"state_dict": weights, "fastssl": own}, folder / "last.ckpt")
    return method.eval()
