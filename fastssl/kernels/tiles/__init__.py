"""What the tile kernels of several ops share: the choice of a tile, loads into it, bounds of its logits that are known beforehand,
and the merging of the partial results of several tiles."""
