"""What the tile kernels of several ops share: which tile to take, what is read into it, what is known of its logits beforehand,
and how the partial results of several tiles become one."""
