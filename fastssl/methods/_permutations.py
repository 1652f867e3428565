"""Permutations that differ in as many places as possible: the answers of a jigsaw puzzle (Noroozi and Favaro 2016, algorithm 1)."""

import math

import torch
from torch import Tensor

from fastssl.checks import check_whole


def all_permutations(length: int) -> Tensor:
    """(length!, length) int64 in lexicographic order."""
    rows = torch.zeros(1, 0, dtype=torch.int64)
    for n in range(1, length + 1):
        rows = torch.cat([torch.cat([torch.full((len(rows), 1), first), rows + (rows >= first)], 1) for first in range(n)])
    return rows


def distant_permutations(count: int, length: int = 9) -> Tensor:
    """Permutations chosen one after another, each as far as possible from all before: the same ones each time.

    The first is the identity. Each next one has the largest sum of Hamming distances (places that differ) to those before; of
    several, that of the largest least distance, then the first in lexicographic order. Noroozi and Favaro 2016,
    https://arxiv.org/abs/1603.09246, algorithm 1, which begins with a random one.

    Args:
        count: number of permutations, at most ``length!``.
        length: number of places, at most 9.

    Returns:
        (count, length) int64.

    Raises:
        TypeError: an argument that is no whole number.
        ValueError: an argument out of its range.

    Examples:
        >>> distant_permutations(3, length=3).tolist()
        [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
    """
    length = check_whole("distant_permutations", "length", length, 1)
    if length > 9:
        raise ValueError(f"distant_permutations: length must be at most 9, whose 362880 permutations are compared, got {length}")
    count = check_whole("distant_permutations", "count", count, 1)
    if count > math.factorial(length):
        limit = f"{math.factorial(length)}, the number of permutations of {length}"
        raise ValueError(f"distant_permutations: count must be at most {limit}, got {count}")
    every = all_permutations(length)
    columns = every.to(torch.int8).T.contiguous()
    total, least = torch.zeros(len(every), dtype=torch.int64), torch.full((len(every),), length, dtype=torch.int8)
    chosen = [0]
    while len(chosen) < count:
        apart = sum((column != column[chosen[-1]]).to(torch.int8) for column in columns)
        total += apart
        least = torch.minimum(least, apart)
        rank = (total * (length + 1) + least).index_fill_(0, torch.tensor(chosen), -1)
        chosen.append(int((rank == rank.max()).nonzero()[0]))
    return every[chosen]
