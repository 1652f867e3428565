"""A product quantiser whose codes are drawn with Gumbel noise (Jang et al. 2017; Baevski et al. 2020, section 2).

    l = W z + b  (M, G, V)          v_g = argmax_v (l_gv + n_gv),  n = -log(-log u), u uniform; in evaluation without n
    q = sum_g E_g[v_g]              its gradient is that of sum_g softmax((l_g + n_g) / t) E_g   (straight through)
    t = max(end, start decay^step)  perplexity = sum_g exp(H(mean over rows of softmax(l_g)))   from G to G V

The paper joins the entries of the groups and multiplies them with a matrix. That is a sum of tables E (G, V, D), which are learned
here. As q is a sum of rows that are looked up, rows of equal codes are equal in every bit, so that the loss can leave them out.
"""

import torch
from torch import Tensor, nn


class GumbelQuantizer(nn.Module):
    """rows (M, width) -> targets (M, out_dim) of a codebook of G groups of V entries. ``step`` counts the training steps."""

    def __init__(self, width: int, out_dim: int, groups: int, entries: int, temperatures: tuple[float, float, float]):
        super().__init__()
        self.groups, self.entries = groups, entries
        self.start, self.end, self.decay = temperatures
        self.logits = nn.Linear(width, groups * entries)
        self.tables = nn.Parameter(torch.empty(groups, entries, out_dim).uniform_(-0.5, 0.5))
        self.step: Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        nn.init.normal_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def temperature(self) -> Tensor:
        """t of the next step, a scalar float32."""
        return (self.start * self.decay ** self.step.float()).clamp_min(self.end)

    def advance(self) -> Tensor:
        """The temperature of this step, after which the next one begins."""
        now = self.temperature()
        self.step += 1
        return now

    def forward(self, z: Tensor, temperature: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Targets of rows, and how evenly the codes are used.

        Args:
            z: (M, width).
            temperature: scalar t; it matters in training alone.
            generator: what the noise is drawn from; None: torch's default generator.

        Returns:
            q (M, out_dim) in the dtype of the tables, and the perplexity, a scalar float32 or float64.
        """
        logits = self.logits(z).unflatten(1, (self.groups, self.entries))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        mean = logits.softmax(2).mean(0)
        perplexity = (-torch.special.xlogy(mean, mean).sum(1)).exp().sum()
        if self.training:
            logits = (logits - torch.empty_like(logits).exponential_(generator=generator).log()) / temperature
        codes, group = logits.argmax(2), torch.arange(self.groups, device=z.device)
        q = self.tables[group, codes].sum(1)
        if self.training:
            soft = logits.softmax(2).to(self.tables.dtype)
            q = q + torch.einsum("mgv,gvd->md", soft - soft.detach(), self.tables.detach())
        return q, perplexity
