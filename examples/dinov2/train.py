"""DINOv2's training step at a small size: class tokens, masked patches and KoLeo, with a teacher that Sinkhorn balances.

python -m examples.dinov2.train [--fastssl | --compare]
python -m examples.dinov2.train --centering centering [--fastssl | --compare]    with centres in place of Sinkhorn
"""

import torch
import torch.nn.functional as F
from torch import nn

from examples._compare import Run, arguments
from examples._digits import augment, digits
from examples.dinov2.losses import DINOLoss, KoLeoLoss, iBOTPatchLoss

args = arguments(
    __doc__, batch=32, centering=("sinkhorn_knopp", "centering"), head_n_prototypes=(16384, 256), local_crops_number=(8, 2)
)
if args.fastssl:  # one import; where the package dinov2 is installed, fastssl.patch("dinov2") does it without one
    from fastssl.compat.dinov2 import DINOLoss, KoLeoLoss, iBOTPatchLoss

WIDTH, PATCH = 64, 4


class Backbone(nn.Module):
    """A vision transformer of one block: images of 32 or 16 pixels -> the normalised class token and patch tokens."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls_token, self.mask_token = (nn.Parameter(0.02 * torch.randn(1, 1, WIDTH)) for _ in range(2))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, WIDTH, 8, 8))
        self.block = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x, masks=None):
        x = self.patch_embed(x)
        positions = F.interpolate(self.pos_embed, x.shape[2:], mode="bicubic").flatten(2).mT
        x = x.flatten(2).mT
        if masks is not None:
            x = torch.where(masks.unsqueeze(-1), self.mask_token, x)
        x = self.norm(self.block(torch.cat((self.cls_token.expand(len(x), -1, -1), x + positions), dim=1)))
        return {"x_norm_clstoken": x[:, 0], "x_norm_patchtokens": x[:, 1:]}


class Head(nn.Module):
    """The head that class tokens and patches share: prototypes of unit length, behind an embedding of unit length."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, 64))
        self.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(64, args.head_n_prototypes, bias=False))
        self.last_layer.parametrizations.weight.original0.data.fill_(1.0)
        self.last_layer.parametrizations.weight.original0.requires_grad_(False)

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


def masks_of(count, patches):
    """Masks (count, patches), where every second image has between a tenth and a half of its patches masked."""
    ratio = torch.empty(count, 1).uniform_(0.1, 0.5) * (torch.arange(count)[:, None] % 2)
    masks = torch.rand(count, patches).argsort(1) < (ratio * patches).round()
    return masks.to(args.device)


class SSLMetaArch(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.ModuleDict({"backbone": Backbone(), "dino_head": Head()})
        self.teacher = nn.ModuleDict({"backbone": Backbone(), "dino_head": Head()})
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.dino_loss, self.koleo_loss = DINOLoss(args.head_n_prototypes), KoLeoLoss()
        self.ibot_patch_loss = iBOTPatchLoss(args.head_n_prototypes)

    @torch.no_grad()
    def get_teacher_output(self, global_crops, mask_indices, teacher_temp):
        output = self.teacher.backbone(global_crops)
        first, second = output["x_norm_clstoken"].chunk(2)
        patches = output["x_norm_patchtokens"].flatten(0, 1)[mask_indices]
        rows = self.teacher.dino_head(torch.cat((second, first, patches)))  # each crop meets the other one's target
        cls, patches = rows[: len(global_crops)], rows[len(global_crops) :]
        if args.centering == "centering":
            cls_targets = self.dino_loss.softmax_center_teacher(cls, teacher_temp=teacher_temp)
            self.dino_loss.update_center(cls)
            patches = patches.unsqueeze(0)
            patch_targets = self.ibot_patch_loss.softmax_center_teacher(patches, teacher_temp=teacher_temp).squeeze(0)
            self.ibot_patch_loss.update_center(patches)
        else:
            count = torch.tensor(len(patches), device=args.device)
            cls_targets = self.dino_loss.sinkhorn_knopp_teacher(cls, teacher_temp=teacher_temp)
            patch_targets = self.ibot_patch_loss.sinkhorn_knopp_teacher(
                patches, teacher_temp=teacher_temp, n_masked_patches_tensor=count
            )
        return cls_targets.view(2, -1, cls_targets.shape[-1]), patch_targets

    def forward_backward(self, global_crops, local_crops, masks, teacher_temp):
        """The crops of all images, crop after crop -> the loss; its gradients are in the student's parameters."""
        mask_indices = masks.flatten().nonzero().flatten()
        masks_weight = (1 / masks.sum(-1).clamp(min=1)).unsqueeze(-1).expand_as(masks)[masks]
        cls_targets, patch_targets = self.get_teacher_output(global_crops, mask_indices, teacher_temp)
        of_globals = self.student.backbone(global_crops, masks)
        cls = of_globals["x_norm_clstoken"]
        patches = of_globals["x_norm_patchtokens"].flatten(0, 1)[mask_indices]
        parts = (self.student.backbone(local_crops)["x_norm_clstoken"], cls, patches)
        logits = self.student.dino_head(torch.cat(parts))
        local_logits, global_logits, patch_logits = logits.split([len(part) for part in parts])

        local_terms, global_terms = 2 * args.local_crops_number, 2
        loss = self.dino_loss(
            student_output_list=local_logits.chunk(args.local_crops_number), teacher_out_softmaxed_centered_list=cls_targets
        ) / (local_terms + global_terms)
        both = self.dino_loss(student_output_list=[global_logits], teacher_out_softmaxed_centered_list=[cls_targets.flatten(0, 1)])
        loss = loss + 2 * both / (local_terms + global_terms)
        loss = loss + 0.1 * sum(self.koleo_loss(crop) for crop in cls.chunk(2))
        of_patches = self.ibot_patch_loss.forward_masked(
            patch_logits,
            patch_targets,
            student_masks_flat=masks,
            n_masked_patches=len(mask_indices),
            masks_weight=masks_weight,
        )
        loss = loss + of_patches  # DINOv2 multiplies it by 2 and by 1/2
        loss.backward()
        return loss

    @torch.no_grad()
    def update_teacher(self, m):
        students, teachers = list(self.student.parameters()), list(self.teacher.parameters())
        torch._foreach_mul_(teachers, m)
        torch._foreach_add_(teachers, students, alpha=1 - m)


model = SSLMetaArch().to(args.device, args.dtype)
optimizer = torch.optim.AdamW([p for p in model.student.parameters() if p.requires_grad], 1e-3, betas=(0.9, 0.999))
images, _ = digits(args.steps * args.batch)

with Run(args) as run:
    for batch in images.split(args.batch):
        global_crops = torch.cat([augment(batch) for _ in range(2)]).to(args.device)
        local_crops = torch.cat([augment(batch)[:, :, 8:24, 8:24] for _ in range(args.local_crops_number)]).to(args.device)
        masks = masks_of(2 * args.batch, (32 // PATCH) ** 2)
        optimizer.zero_grad()
        loss = model.forward_backward(global_crops, local_crops, masks, teacher_temp=0.07)
        nn.utils.clip_grad_norm_(model.student.parameters(), 3.0)
        optimizer.step()
        model.update_teacher(0.99)
        run.step(loss)
    run.also("length of the centre of class tokens", model.dino_loss.center.norm())
    run.also("length of the centre of patches", model.ibot_patch_loss.center.norm())
