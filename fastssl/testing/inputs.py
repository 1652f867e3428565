"""The inputs of the cases: seeded, drawn in float64, then rounded to the dtype and moved to the device of a test.

A function takes (shape, dtype, device, seed) and returns the differentiable tensors of a call by name. Imports nothing of
``fastssl``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

Inputs = dict[str, Tensor]

#: Added to every seed of the table: another value gives other inputs to all cases.
SEED = 0


def generator_of(seed: int) -> torch.Generator:
    """A generator for one tensor of a case."""
    return torch.Generator().manual_seed(SEED + seed)


def randn(shape: tuple, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Normal numbers, drawn in float64 and rounded to ``dtype``: the same numbers in every dtype and on every device."""
    return torch.randn(shape, generator=generator_of(seed), dtype=torch.float64).to(dtype).to(device)


def two_views(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, noise: float = 0.5) -> Inputs:
    """z0, z1 (B, D): a base, plus noise of its own for each view, so that positives are closer than negatives."""
    base, a, b = (torch.randn(shape, generator=generator_of(seed + k), dtype=torch.float64) for k in range(3))
    return {"z0": (base + noise * a).to(dtype).to(device), "z1": (base + noise * b).to(dtype).to(device)}


def unit_rows(shape: tuple, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Rows of length 1, from the same numbers in every dtype."""
    return F.normalize(torch.randn(shape, generator=generator_of(seed), dtype=torch.float64), dim=1).to(dtype).to(device)


def in_seven_bits(x: Tensor) -> Tensor:
    """x in [-1, 1] rounded to multiples of 1/128, which every dtype holds: a constant that is the same in all of them."""
    return (x * 128).round() / 128


def two_sided_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows x (N, D) and y (M, D), a bias of y (M,) and a scale, for a shape (N, M, D)."""
    n, m, d = shape
    wide = torch.promote_types(dtype, torch.float32)
    return {
        "x": unit_rows((n, d), dtype, device, seed),
        "y": unit_rows((m, d), dtype, device, seed + 1),
        "y_bias": randn((m,), wide, device, seed + 2),
        "scale": torch.tensor(10.0, dtype=wide, device=device),
    }


def symmetric_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows x (N, D), which are the columns too, and a scale, for a shape (N, M, D)."""
    return {"x": unit_rows((shape[0], shape[2]), dtype, device, seed), "scale": two_sided_inputs(shape, dtype, device)["scale"]}


def one_pass_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows x (N, D) and a scale; the columns are a constant of the call."""
    inputs = two_sided_inputs(shape, dtype, device, seed)
    return {"x": inputs["x"], "scale": inputs["scale"]}


def sides_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows x (N, D) and y (M, D) and a scale, for a shape (N, M, D)."""
    inputs = two_sided_inputs(shape, dtype, device, seed)
    return {"x": inputs["x"], "y": inputs["y"], "scale": inputs["scale"]}


def sigmoid_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows x (N, D) and y (M, D), a scale and a bias, for a shape (N, M, D)."""
    inputs = sides_inputs(shape, dtype, device, seed)
    return inputs | {"bias": torch.tensor(-3.0, dtype=inputs["scale"].dtype, device=device)}


def prediction_inputs(*args, **kwargs) -> Inputs:
    """Predictions p (B, D) and targets z (B, D)."""
    views = two_views(*args, **kwargs)
    return {"p": views["z0"], "z": views["z1"]}


def keys_and_negatives(
    shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, paired: bool = False
) -> Inputs:
    """Queries and keys (B, D), and negatives: (B, D) for all queries, or (B, 5, D), of each query its own."""
    views = two_views(shape, dtype, device, seed)
    b, d = shape
    extra = randn((b, 5, d) if paired else (b, d), dtype, device, seed + 7)
    return {"query": views["z0"], "positive_key": views["z1"], "negative_keys": extra}


def paired_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Queries (B, D), keys (B, D), and of each query its own negatives (B, 5, D)."""
    return keys_and_negatives(shape, dtype, device, seed, paired=True)


def hard_inputs(*args, **kwargs) -> Inputs:
    """Queries (B, D), keys (B, D) and hard negatives (B, D)."""
    inputs = keys_and_negatives(*args, **kwargs)
    return {"query": inputs["query"], "positive_key": inputs["positive_key"], "hard_negative_keys": inputs["negative_keys"]}


def passages_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Queries (B, D) and of each query three passages (3B, D), of which the first is its positive."""
    views = two_views(shape, torch.float64, "cpu", seed)
    b, d = shape
    hard = randn((b, 2, d), torch.float64, "cpu", seed + 7)
    passages = torch.cat([views["z1"][:, None], hard], 1).flatten(0, 1)
    return {"query": views["z0"].to(dtype).to(device), "positive_key": passages.to(dtype).to(device)}


def queries(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Queries (B, D) and keys (B, D)."""
    views = two_views(shape, dtype, device, seed)
    return {"query": views["z0"], "positive_key": views["z1"]}


def image_text(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows of images and texts (B, D) and a learned scale, as the encoders of CLIP give them."""
    views = two_views(shape, torch.float64, "cpu", seed)
    image, text = (F.normalize(views[z], dim=1).to(dtype).to(device) for z in ("z0", "z1"))
    return {
        "image": image,
        "text": text,
        "logit_scale": torch.tensor(14.0, dtype=torch.promote_types(dtype, torch.float32), device=device),
    }


def image_text_bias(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit rows of images and texts (B, D), a learned scale and a learned bias, as for SigLIP."""
    inputs = image_text(shape, dtype, device, seed)
    return inputs | {"logit_bias": torch.full_like(inputs["logit_scale"], -5.0)}


def moco_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Inputs:
    """Unit queries (N, D) and keys (N, D); the queue is a constant of the call."""
    pairs = image_text(shape, dtype, device, seed)
    return {"query": pairs["image"], "key": pairs["text"]}


def sup_con_inputs(shape: tuple, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0, views: int = 3) -> Inputs:
    """Unit features (B, V, D), of which the V views of a sample are close to each other."""
    b, d = shape
    base, noise = randn((b, 1, d), torch.float64, "cpu", seed), randn((b, views, d), torch.float64, "cpu", seed + 1)
    return {"features": F.normalize(base + 0.5 * noise, dim=2).to(dtype).to(device)}
