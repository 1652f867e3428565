"""Each drop-in beside its original: arguments and defaults, attributes, methods, state keys; the table in docs/compat.md.

    python -m tests.support.compat_signatures --write      writes the table anew

solo-learn and the repositories of MoCo, MAE and DINO are on no index: their published signatures stand here.
"""

import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

PAGE = Path(__file__).parents[2] / "docs" / "compat.md"
START, END = "<!-- signatures:start -->\n", "<!-- signatures:end -->\n"
_OF_LIGHTLY = ("NTXentLoss", "DCLLoss", "DCLWLoss", "DINOLoss", "IBOTPatchLoss", "IBOTPlusPlusPatchLoss", "KoLeoLoss")
_OF_LIGHTLY += ("BarlowTwinsLoss", "MMCRLoss", "NegativeCosineSimilarity", "PatchKernelAlignmentLoss", "TiCoLoss", "VICRegLoss")
_INHERITED = {name for base in (nn.Module, torch.optim.Optimizer) for name in dir(base)}


@dataclass(frozen=True)
class Pair:
    """``ours`` and ``theirs``: "module:name", a dotted name within it too; ``theirs`` may be a published signature, "(a, b=1)".

    ``build``: arguments for an instance of each, whose attributes and state are compared.
    """

    ours: str
    theirs: str
    build: tuple | None = None


_RATES = "lr, momentum=0, dampening=0, weight_decay=0, nesterov=False, eta=1e-3, eps=1e-8, clip_lr=False"
_SCORES = "(self, q_reps, p_reps, teacher_targets=None, compute_score_func=None"
_LATE = "student_temp=0.1, center_momentum=0.9"
_OF_PATCHES = "teacher_output, teacher_temp, n_masked_patches_tensor, n_iterations=3"
_MASKED = "(self, student_patch_tokens_masked, teacher_patch_tokens_masked, student_masks_flat, n_masked_patches=None, "
_MASKED += "masks_weight=None)"
#: Drop-in -> the signature that its original was published with.
PUBLISHED = {
    "solo:simclr_loss_func": "(z, indexes, temperature=0.1)",
    "solo:mocov2plus_loss_func": "(query, key, queue, temperature=0.1)",
    "solo:mocov3_loss_func": "(query, key, temperature=0.2)",
    "solo:nnclr_loss_func": "(nn, p, temperature=0.1)",
    "solo:simsiam_loss_func": "(p, z, simplified=True)",
    "solo:byol_loss_func": "(p, z, simplified=True)",
    "solo:mae_loss_func": "(imgs, pred, mask, patch_size, norm_pix_loss=True)",
    "solo:initialize_momentum_params": "(online_net, momentum_net)",
    "solo:MomentumUpdater.__init__": "(self, base_tau=0.996, final_tau=1.0)",
    "solo:MomentumUpdater.update": "(self, online_net, momentum_net)",
    "solo:MomentumUpdater.update_tau": "(self, cur_step, max_steps)",
    "solo:LARS.__init__": f"(self, params, {_RATES}, exclude_bias_n_norm=False)",
    "moco:MoCo.__init__": "(self, base_encoder, dim=128, K=65536, m=0.999, T=0.07, mlp=False)",
    "moco:MoCo.forward": "(self, im_q, im_k)",
    "moco:MoCo._dequeue_and_enqueue": "(self, keys)",
    "moco:MoCo._batch_shuffle_ddp": "(self, x)",
    "moco:MoCo._batch_unshuffle_ddp": "(self, x, idx_unshuffle)",
    "moco:concat_all_gather": "(tensor)",
    "mocov3:contrastive_loss": "(self, q, k)",
    "mocov3:update_momentum_encoder": "(self, m)",
    "supcon:forward": "(self, features, labels=None, mask=None)",
    "sentence_transformers:compute_loss_from_embeddings": "(self, embeddings, labels)",
    "sentence_transformers:calculate_loss": "(self, reps, labels=None, *, with_backward=False)",
    "flag_embedding:compute_in_batch_neg_loss": f"{_SCORES}, **kwargs)",
    "flag_embedding:compute_cross_device_neg_loss": f"{_SCORES}, **kwargs)",
    "ms_swift:call": "(self, outputs, labels, **kwargs)",
    "tevatron:forward": "(self, query=None, passage=None)",
    "contrastors:clip_loss": "(query, document, logit_scale, step=None, gather_enabled=False, tracker=None, dataset='', "
    "bidirectional=False)",
    "grad_cache:SimpleContrastiveLoss.__init__": "(self, n_hard_negatives=0)",
    "grad_cache:SimpleContrastiveLoss.__call__": "(self, x, y, target=None, reduction='mean')",
    "grad_cache:DistributedContrastiveLoss.__init__": "(self, n_hard_negatives=0)",
    "grad_cache:DistributedContrastiveLoss.__call__": "(self, x, y, **kwargs)",
    "grad_cache:DistributedContrastiveLoss.gather_tensor": "(self, t)",
    "mae:random_masking": "(self, x, mask_ratio)",
    "mae:forward_encoder": "(self, x, mask_ratio)",
    "mae:forward_decoder": "(self, x, ids_restore)",
    "mae:forward_loss": "(self, imgs, pred, mask)",
    "mae:patchify": "(self, imgs)",
    "mae:unpatchify": "(self, x)",
    "byol:update_moving_average": "(ema_updater, ma_model, current_model)",
    "byol:EMA.__init__": "(self, beta)",
    "byol:EMA.update_average": "(self, old, new)",
    "dino:DINOLoss.__init__": "(self, out_dim, ncrops, warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, nepochs, "
    "student_temp=0.1, center_momentum=0.9)",
    "dino:DINOLoss.forward": "(self, student_output, teacher_output, epoch)",
    "dino:DINOLoss.update_center": "(self, teacher_output)",
    "dinov2:DINOLoss.__init__": f"(self, out_dim, {_LATE})",
    "dinov2:DINOLoss.softmax_center_teacher": "(self, teacher_output, teacher_temp)",
    "dinov2:DINOLoss.sinkhorn_knopp_teacher": "(self, teacher_output, teacher_temp, n_iterations=3)",
    "dinov2:DINOLoss.forward": "(self, student_output_list, teacher_out_softmaxed_centered_list)",
    "dinov2:DINOLoss.update_center": "(self, teacher_output)",
    "dinov2:DINOLoss.reduce_center_update": "(self, teacher_output)",
    "dinov2:DINOLoss.apply_center_update": "(self)",
    "dinov2:iBOTPatchLoss.__init__": f"(self, patch_out_dim, {_LATE})",
    "dinov2:iBOTPatchLoss.softmax_center_teacher": "(self, teacher_patch_tokens, teacher_temp)",
    "dinov2:iBOTPatchLoss.sinkhorn_knopp_teacher": f"(self, {_OF_PATCHES})",
    "dinov2:iBOTPatchLoss.forward": "(self, student_patch_tokens, teacher_patch_tokens, student_masks_flat)",
    "dinov2:iBOTPatchLoss.forward_masked": _MASKED,
    "dinov2:KoLeoLoss.forward": "(self, student_output, eps=1e-8)",
    "dinov3:DINOLoss.__init__": f"(self, out_dim, {_LATE})",
    "dinov3:DINOLoss.init_weights": "(self)",
    "dinov3:DINOLoss.softmax_center_teacher": "(self, teacher_output, teacher_temp, update_centers=True)",
    "dinov3:DINOLoss.sinkhorn_knopp_teacher": "(self, teacher_output, teacher_temp, n_iterations=3)",
    "dinov3:DINOLoss.forward": "(self, student_logits, teacher_probs, ignore_diagonal=False)",
    "dinov3:SinkhornKnoppTeacher.forward": f"(self, {_OF_PATCHES})",
    "dinov3:iBOTPatchLoss.__init__": f"(self, patch_out_dim, {_LATE})",
    "dinov3:iBOTPatchLoss.softmax_center_teacher": "(self, teacher_patch_tokens, teacher_temp, update_centers=True)",
    "dinov3:iBOTPatchLoss.forward_masked": _MASKED,
    "dinov3:KoLeoLossDistributed.__init__": "(self, topk=1, loss_group_size=None)",
    "dinov3:KoLeoLossDistributed.forward": "(self, student_output, eps=1e-8)",
    "dinov3:GramLoss.__init__": "(self, apply_norm=True, img_level=True, remove_neg=True, remove_only_teacher_neg=False)",
    "dinov3:GramLoss.forward": "(self, output_feats, target_feats, img_level=True)",
    "swav:distributed_sinkhorn": "(Q, nmb_iters)",
    "solo:DINOLoss.__init__": "(self, num_prototypes, warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, num_epochs, "
    "student_temp=0.1, num_large_crops=2, center_momentum=0.9)",
    "solo:DINOLoss.forward": "(self, student_output, teacher_output)",
    "solo:DINOLoss.update_center": "(self, teacher_output)",
    "solo:barlow_loss_func": "(z1, z2, lamb=0.005, scale_loss=0.025)",
    "solo:vicreg_loss_func": "(z1, z2, sim_loss_weight=25.0, var_loss_weight=25.0, cov_loss_weight=1.0)",
    "barlow:forward": "(self, y1, y2)",
    "vicreg:forward": "(self, x, y)",
    "vicreg:batch_all_gather": "(x)",
    "solo:swav_loss_func": "(preds, assignments, temperature=0.1)",
    "dino:cosine_scheduler": "(base_value, final_value, epochs, niter_per_ep, warmup_epochs=0, start_warmup_value=0)",
}


def _pairs() -> tuple[Pair, ...]:
    found = []

    def several(ours: str, theirs: str, names: str) -> None:
        found.extend(Pair(f"fastssl.compat.{ours}:{name}", f"{theirs}:{name}") for name in names.split())

    utils = "update_momentum random_token_mask get_at_index set_at_index mask_at_index mask_bool repeat_token patchify unpatchify"
    several("lightly", "lightly.models.utils", f"{utils} normalize_mean_var")
    several("lightly", "lightly.utils.scheduler", "cosine_schedule")
    several("info_nce", "info_nce", "info_nce")
    module = "lightly.models.modules"
    found.append(Pair("fastssl.compat.lightly:vit_preprocess", f"{module}:MaskedVisionTransformerTIMM.preprocess"))
    found.append(Pair("fastssl.compat.lightly:MemoryBankModule", f"{module}.memory_bank:MemoryBankModule", ((8, 4),)))
    found.append(Pair("fastssl.compat.lightly:NNMemoryBankModule", f"{module}.nn_memory_bank:NNMemoryBankModule", ((8, 4),)))
    for name in _OF_LIGHTLY:
        found.append(Pair(f"fastssl.loss:{name}", f"lightly.loss:{name}", (0.5, (8, 4)) if name == "NTXentLoss" else ()))
    found.append(Pair("fastssl.compat.lightly:SwaVLoss", "lightly.loss:SwaVLoss", ()))
    found.append(Pair("fastssl.compat.lightly:LARS", "lightly.utils.lars:LARS", ("params", 0.1)))
    for name in ("ClipLoss", "SigLipLoss"):
        found.append(Pair(f"fastssl.loss:{name}", f"open_clip.loss:{name}", ()))
    found.append(Pair("fastssl.compat.info_nce:InfoNCE", "info_nce:InfoNCE", ()))
    for name in ("SupConLoss", "NTXentLoss"):
        found.append(Pair(f"fastssl.compat.pml:{name}", f"pytorch_metric_learning.losses:{name}", ()))
    found.append(Pair("fastssl.compat.timm:ModelEmaV3", "timm.utils:ModelEmaV3", ("model",)))
    vit_mae = "transformers.models.vit_mae.modeling_vit_mae"
    for ours, theirs in (
        ("random_masking", "ViTMAEEmbeddings.random_masking"),
        ("embeddings_forward", "ViTMAEEmbeddings.forward"),
        ("decoder_forward", "ViTMAEDecoder.forward"),
        ("forward", "ViTMAEForPreTraining.forward"),
    ):
        found.append(Pair(f"fastssl.compat.transformers:{ours}", f"{vit_mae}:{theirs}"))
    for name, model in (("clip", "CLIPModel"), ("siglip", "SiglipModel"), ("siglip2", "Siglip2Model")):
        found.append(
            Pair(f"fastssl.compat.transformers:{name}_forward", f"transformers.models.{name}.modeling_{name}:{model}.forward")
        )
    found.extend(Pair(f"fastssl.compat.{ours}", theirs) for ours, theirs in PUBLISHED.items())
    found.append(Pair("fastssl.loss:SupConLoss.__init__", "(self, temperature=0.07, contrast_mode='all', base_temperature=0.07)"))
    found.append(Pair("fastssl.loss:SupConLoss.forward", "(self, features, labels=None, mask=None)"))
    return tuple(found)


PAIRS = _pairs()


def find(path: str):
    if path.startswith("("):
        return eval(f"lambda {path[1:-1]}: None", {})
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def differences(pair: Pair) -> list[str]:
    """Each difference as a part of a sentence."""
    ours, theirs = find(pair.ours), find(pair.theirs)
    found = _arguments(ours, theirs, "")
    if isinstance(theirs, type):
        found += _methods(ours, theirs)
    if pair.build is not None:
        found += _attributes(*(_built(cls, pair.build) for cls in (ours, theirs)))
    return found


def _arguments(ours: Callable, theirs: Callable, where: str) -> list[str]:
    mine, other = (list(inspect.signature(f).parameters.values()) for f in (ours, theirs))
    named = [p.name for p in other if p.kind is p.KEYWORD_ONLY]
    other = [p for p in other if p.kind is not p.KEYWORD_ONLY]
    more = [p.name for p in mine if p.kind is p.KEYWORD_ONLY and p.name not in named]
    placed = [p for p in mine if p.kind is not p.KEYWORD_ONLY]
    found = []
    if missing := sorted(set(named) - {p.name for p in mine}):
        found.append(f"{where}without the arguments {_listed(missing)}")
    if [p.name for p in placed[: len(other)]] != [p.name for p in other]:
        found.append(f"{where}takes ({', '.join(p.name for p in placed)}), there ({', '.join(p.name for p in other)})")
    for p, q in zip(placed, other, strict=False):
        if p.kind is not q.kind:
            found.append(f"{where}`{p.name}` is {p.kind.description}, there {q.kind.description}")
        if p.default != q.default:
            values = ["required" if d is inspect.Parameter.empty else f"{d!r}" for d in (p.default, q.default)]
            found.append(f"{where}`{p.name}` is {values[0]}, there {values[1]}")
    more = [p.name for p in placed[len(other) :]] + more
    return found + ([f"{where}more arguments: {_listed(more)}"] if more else [])


def _methods(ours: type, theirs: type) -> list[str]:
    found, missing = [], []
    for name, method in inspect.getmembers(theirs, inspect.isfunction):
        if name.startswith("__") or (name in _INHERITED and name not in ("forward", "step")):
            continue
        if not hasattr(ours, name):
            missing.append(f"{name}()")
        elif name != "step":  # decorated alike by torch
            found += _arguments(getattr(ours, name), method, f"`{name}` ")
    return found + ([f"without the methods {_listed(missing)}"] if missing else [])


def _built(cls: type, arguments: tuple):
    given = {"params": [nn.Parameter(torch.ones(3, 2))], "model": nn.Linear(2, 2)}
    return cls(*(given.get(a, a) if isinstance(a, str) else a for a in arguments))


def _attributes(ours, theirs) -> list[str]:
    found, mine, other = [], _public(ours), _public(theirs)
    if missing := sorted(other.keys() - mine.keys()):
        found.append(f"without the attributes {_listed(missing)}")
    simple = (int, float, str, tuple, type(None), torch.dtype, torch.device)
    for name in sorted(other.keys() & mine.keys()):
        if isinstance(other[name], simple) and mine[name] != other[name]:
            found.append(f"`{name}` is {mine[name]!r}, there {other[name]!r}")
    states = [o.state_dict() for o in (ours, theirs)]
    if isinstance(ours, torch.optim.Optimizer):
        states = [s["param_groups"][0] for s in states]
    for extra, words in ((states[0].keys() - states[1].keys(), "with"), (states[1].keys() - states[0].keys(), "without")):
        if extra:
            found.append(f"{words} the state keys {_listed(sorted(extra))}")
    return found


def _public(instance) -> dict:
    found = {name: value for name, value in vars(instance).items() if not name.startswith("_")}
    if isinstance(instance, nn.Module):
        found |= {name: value for kind in ("_modules", "_buffers", "_parameters") for name, value in vars(instance)[kind].items()}
    return {name: value for name, value in found.items() if name != "training"}


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def table() -> str:
    lines = ["| drop-in | differs from the original in |", "| --- | --- |"]
    same = 0
    for pair in PAIRS:
        found = differences(pair)
        same += not found
        if found:
            lines.append(f"| `{pair.ours.replace(':', '.').removeprefix('fastssl.')}` | {'; '.join(found)} |")
    lines.append("")
    lines.append(f"The other {same} of {len(PAIRS)} signatures compared are equal.")
    return "\n".join(lines) + "\n"


def written() -> str:
    return PAGE.read_text().partition(START)[2].partition(END)[0]


if __name__ == "__main__":
    from benchmarks.peers import ready_torchvision

    ready_torchvision()
    text = table()
    if "--write" in sys.argv:
        page = PAGE.read_text()
        PAGE.write_text(page.replace(START + written() + END, START + text + END))
    print(text)
