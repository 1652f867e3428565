"""A masked autoencoder with the methods of the MAE repository's class (He et al. 2022), in plain PyTorch, of timm's parts."""

import torch
from timm.models.vision_transformer import Block, PatchEmbed
from torch import nn


class MaskedAutoencoderViT(nn.Module):
    def __init__(self, img_size=32, patch_size=4, width=64, depth=1, decoder_width=48, norm_pix_loss=True):
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        self.patch_embed = PatchEmbed(img_size, patch_size, 3, width)
        count = 1 + self.patch_embed.num_patches
        self.cls_token, self.mask_token = (nn.Parameter(0.02 * torch.randn(1, 1, each)) for each in (width, decoder_width))
        self.pos_embed, self.decoder_pos_embed = (
            nn.Parameter(0.02 * torch.randn(1, count, each), requires_grad=False) for each in (width, decoder_width)
        )
        self.blocks = nn.ModuleList([Block(width, 4, qkv_bias=True) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_blocks = nn.ModuleList([Block(decoder_width, 4, qkv_bias=True)])
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.decoder_pred = nn.Linear(decoder_width, 3 * patch_size**2)

    def patchify(self, imgs):
        p = self.patch_embed.patch_size[0]
        patches = imgs.unfold(2, p, p).unfold(3, p, p)  # (N, 3, rows, columns, p, p)
        return patches.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)

    def unpatchify(self, x):
        p, side = self.patch_embed.patch_size[0], int(x.shape[1] ** 0.5)
        return x.view(len(x), side, side, p, p, 3).permute(0, 5, 1, 3, 2, 4).reshape(len(x), 3, side * p, side * p)

    def random_masking(self, x, mask_ratio):
        """Tokens x (N, L, D) -> those kept, mask (N, L) with 1 where removed, and each token's place in the shuffled order."""
        count, length, width = x.shape
        keep = int(length * (1 - mask_ratio))
        shuffled = torch.rand(count, length, device=x.device).argsort(dim=1)
        restore = shuffled.argsort(dim=1)
        kept = x.gather(1, shuffled[:, :keep, None].expand(-1, -1, width))
        return kept, (restore >= keep).to(x.dtype), restore

    def forward_encoder(self, x, mask_ratio):
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio)
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x, ids_restore):
        x = self.decoder_embed(x)
        count, length = ids_restore.shape
        tokens = torch.cat([x[:, 1:], self.mask_token.expand(count, length + 1 - x.shape[1], -1)], dim=1)
        tokens = tokens.gather(1, ids_restore[:, :, None].expand_as(tokens))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, imgs, pred, mask):
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            var, mean = torch.var_mean(target, dim=-1, keepdim=True)
            target = (target - mean) / (var + 1e-6).sqrt()
        return (((pred - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    def forward(self, imgs, mask_ratio=0.75):
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask
