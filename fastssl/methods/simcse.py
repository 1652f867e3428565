"""SimCSE (Gao, Yao, Chen 2021): sentence embeddings from dropout alone, or from pairs and hard negatives.

Unsupervised, eq. 4: the same sentences pass the encoder twice under different dropout masks, h_i and h'_i,

    loss_i = -log exp(cos(h_i, h'_i) / t) / sum_j exp(cos(h_i, h'_j) / t)

Supervised, eq. 5: h'_i is another sentence's embedding, and the sum has exp(cos(h_i, h-_j) / t) of the hard negatives too.
"""

from typing import Any, cast

from torch import Tensor, nn

from fastssl.checks import INTEGERS, check_choice, check_dense, check_number, check_vector
from fastssl.functional import info_nce

from ._ask import ask
from ._checks import check_negatives, check_positive, check_widths, given
from ._common import ranks_of
from ._encoder import mean_of_tokens, take_tokens
from ._layers import check_encoder


class SimCSE(nn.Module):
    """SimCSE around any Hugging Face encoder: ``SimCSE(encoder)(input_ids, attention_mask)`` is the loss.

    Gao, Yao and Chen 2021, https://arxiv.org/abs/2104.08821, equations 4 and 5.

    Args:
        encoder: a module that takes ``input_ids`` and ``attention_mask`` (N, L) and returns hidden states (N, L, F): a tensor,
            ``last_hidden_state`` of an object or mapping, or the first of a tuple. Without dropout in it, unsupervised training has
            nothing to learn from.
        pooler: "cls" for the first token, or "mean" for the mean over the real tokens.
        temperature: above 0.
        hard_negative_weight: added to the logit of sentence i with its own hard negative, log a of the paper's appendix.
        negatives: with several processes, "global" compares the rows of all of them, "local" those of each process alone
            (docs/methods.md, Several processes).
        hidden_dim: width F of the hidden states, by default ``encoder.config.hidden_size``.

    With "cls" a linear layer and tanh follow in training only, as in the paper's unsupervised models; with "mean" nothing does.

    Raises:
        TypeError: an argument of the wrong type, such as an encoder that is no module.
        ValueError: an argument out of its range, or no ``hidden_dim`` for an encoder that does not state its width.

    Examples:
        >>> class Words(torch.nn.Embedding):
        ...     def forward(self, input_ids, attention_mask):
        ...         return torch.nn.functional.dropout(super().forward(input_ids), 0.1)
        >>> method = SimCSE(Words(50, 8), pooler="mean", hidden_dim=8)
        >>> tokens, mask = torch.randint(50, (5, 7)), torch.ones(5, 7)
        >>> method(tokens, mask).shape, method.embed(tokens, mask).shape
        (torch.Size([]), torch.Size([5, 8]))
    """

    def __init__(
        self,
        encoder: nn.Module,
        pooler: str = "cls",
        temperature: float = 0.05,
        hard_negative_weight: float = 0.0,
        *,
        hidden_dim: int | None = None,
        negatives: str = "global",
    ):
        super().__init__()
        check_encoder(encoder, "SimCSE", "encoder")
        check_choice("SimCSE", "pooler", pooler, ("cls", "mean"))
        check_positive("SimCSE", temperature=temperature)
        check_number("SimCSE", "hard_negative_weight", hard_negative_weight)
        check_widths("SimCSE", **given(hidden_dim=hidden_dim))
        hidden_dim = hidden_dim or getattr(getattr(encoder, "config", None), "hidden_size", None)
        if hidden_dim is None:
            raise ValueError("SimCSE: the encoder has no config.hidden_size; pass hidden_dim")
        self.pooler, self.temperature, self.hard_negative_weight = pooler, temperature, hard_negative_weight
        self.encoder, self.hidden_dim = encoder, hidden_dim
        self.negatives = check_negatives("SimCSE", negatives)
        self.head = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.Tanh()) if pooler == "cls" else nn.Identity()

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings of sentences.

        Args:
            input_ids: (N, L) int64.
            attention_mask: (N, L), 0 = padding.

        Returns:
            (N, F), without the head and not normalised.
        """
        output = ask(self.encoder, "SimCSE: the encoder", "input_ids", input_ids, attention_mask=attention_mask)
        hidden = take_tokens(output, len(input_ids), self.hidden_dim, "SimCSE")
        if self.pooler == "cls":
            return hidden[:, 0]
        return mean_of_tokens(hidden, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, ids: Tensor | None = None) -> Tensor:
        """The loss of a batch of sentences.

        Args:
            input_ids, attention_mask: int64 (B, L) for sentences that are each its own positive, (B, 2, L) for sentence and
                positive, (B, 3, L) for sentence, positive and hard negative. B is at least 2.
            ids: (B,) integers. Rows of equal id (the same sentence, one paragraph) are not each other's negatives.

        Returns:
            Scalar float32.

        Raises:
            TypeError: ``ids`` that are no integers.
            ValueError: another shape, a B below 2, or ``ids`` of another length.
        """
        for argument, value in {"input_ids": input_ids, "attention_mask": attention_mask}.items():
            check_dense("SimCSE", argument, value)
        shape = tuple(input_ids.shape)
        if len(shape) not in (2, 3) or shape[0] < 2 or (len(shape) == 3 and shape[1] not in (2, 3)):
            raise ValueError(f"SimCSE: input_ids must be (B, L), (B, 2, L) or (B, 3, L) with B of at least 2, got {shape}")
        if attention_mask.shape != input_ids.shape:
            raise ValueError(f"SimCSE: attention_mask must have the shape of input_ids, {shape}, got {tuple(attention_mask.shape)}")
        if ids is not None:
            check_vector("SimCSE", "ids", ids, len(input_ids), INTEGERS, "input_ids", input_ids)
        if input_ids.ndim == 2:
            input_ids, attention_mask = (t[:, None].expand(-1, 2, -1) for t in (input_ids, attention_mask))
        tokens, mask = (t.transpose(0, 1).flatten(0, 1) for t in (input_ids, attention_mask))
        query, key, *hard = self.head(self.embed(tokens, mask)).chunk(input_ids.shape[1])
        more: dict[str, Any] = {"group": ranks_of(self)}
        if hard:
            more |= {"hard_negative_keys": hard[0], "hard_negative_weight": self.hard_negative_weight}
        return cast(Tensor, info_nce(query, key, temperature=self.temperature, ids=ids, **more))
