"""MAE's light decoder: the encoder's tokens put back between mask tokens, a few blocks, and a layer that gives pixels."""

import torch
from torch import Tensor, nn

from fastssl.functional import restore_tokens
from fastssl.masking import MaskIds

from ._block import Block, init_linear
from ._masked import MaskedImages
from ._positions import sine_positions
from ._timm import embed_patches, run_blocks

EPS = 1e-6


class PaintingDecoder(MaskedImages):
    """``MaskedImages`` with a decoder that paints all patches from those that the encoder has seen."""

    decoder_pos_embed: Tensor

    def add_decoder(self, decoder_dim: int, decoder_depth: int, decoder_heads: int) -> None:
        """Gives the method, which has its backbone by then, the layers of its decoder."""
        before, proj = self.backbone.num_prefix_tokens, self.backbone.patch_embed.proj
        self.decoder_embed = nn.Linear(proj.out_channels, decoder_dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, decoder_dim))
        self.decoder_blocks = nn.ModuleList(Block(decoder_dim, decoder_heads) for _ in range(decoder_depth))
        self.decoder_norm = nn.LayerNorm(decoder_dim, EPS)
        self.decoder_pred = nn.Linear(decoder_dim, proj.in_channels * self.patch_size[0] * self.patch_size[1])
        positions = torch.zeros(1, before + self.grid[0] * self.grid[1], decoder_dim)
        positions[0, before:] = sine_positions(*self.grid, decoder_dim)
        self.register_buffer("decoder_pos_embed", positions, persistent=False)
        for part in (self.decoder_embed, self.decoder_blocks, self.decoder_pred):
            part.apply(init_linear)
        nn.init.normal_(self.mask_token, std=0.02)

    def decode(self, images: Tensor, ids: MaskIds) -> Tensor:
        """Decoded tokens (N, L, decoder_dim) of all patches, before the last norm."""
        before = self.backbone.num_prefix_tokens
        z = self.decoder_embed(run_blocks(self.backbone, embed_patches(self.backbone, images, ids.ids_keep)))
        x = restore_tokens(z, ids.ids_restore, self.mask_token, num_prefix_tokens=before, pos_embed=self.decoder_pos_embed)
        for block in self.decoder_blocks:
            x = block(x)
        return x[:, before:]

    def predict(self, x: Tensor) -> Tensor:
        """Decoded tokens (N, K, decoder_dim) -> pixels (N, K, p q C)."""
        return self.decoder_pred(self.decoder_norm(x))
