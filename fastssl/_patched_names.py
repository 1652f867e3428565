"""Which names of which library ``fastssl.patch`` swaps, and what it has to know of each library."""

from collections.abc import Callable
from typing import Any

_OF_SENTENCES, _OF_TRANSFORMERS = "sentence_transformers.sentence_transformer.losses", "transformers.models"
#: library -> its module -> names in it, each with a drop-in of the same name in ``fastssl.compat``.
NAMES: dict[str, dict[str, tuple[str, ...]]] = {
    "lightly": {
        "lightly.models.utils": (
            "get_at_index",
            "mask_at_index",
            "mask_bool",
            "normalize_mean_var",
            "patchify",
            "random_token_mask",
            "repeat_token",
            "set_at_index",
            "unpatchify",
            "update_momentum",
        ),
        "lightly.models.modules.memory_bank": ("MemoryBankModule",),
        "lightly.models.modules.nn_memory_bank": ("NNMemoryBankModule",),
        "lightly.loss.ntx_ent_loss": ("NTXentLoss",),
        "lightly.loss.dcl_loss": ("DCLLoss", "DCLWLoss"),
        "lightly.loss.dino_loss": ("DINOLoss",),
        "lightly.loss.ibot_loss": ("IBOTPatchLoss", "IBOTPlusPlusPatchLoss"),
        "lightly.loss.swav_loss": ("SwaVLoss",),
        "lightly.loss.barlow_twins_loss": ("BarlowTwinsLoss",),
        "lightly.loss.patch_kernel_alignment_loss": ("PatchKernelAlignmentLoss",),
        "lightly.loss.vicreg_loss": ("VICRegLoss",),
        "lightly.loss.koleo_loss": ("KoLeoLoss",),
        "lightly.loss.mmcr_loss": ("MMCRLoss",),
        "lightly.loss.tico_loss": ("TiCoLoss",),
        "lightly.loss.lejepa_loss": ("LeJEPALoss", "SIGReg"),
        "lightly.loss.negative_cosine_similarity": ("NegativeCosineSimilarity",),
        "lightly.loss.visreg_loss": ("VISRegLoss",),
        "lightly.utils.lars": ("LARS",),
    },
    "solo": {
        "solo.losses.barlow": ("barlow_loss_func",),
        "solo.losses.byol": ("byol_loss_func",),
        "solo.losses.dino": ("DINOLoss",),
        "solo.losses.mae": ("mae_loss_func",),
        "solo.losses.mocov2plus": ("mocov2plus_loss_func",),
        "solo.losses.mocov3": ("mocov3_loss_func",),
        "solo.losses.nnclr": ("nnclr_loss_func",),
        "solo.losses.simclr": ("simclr_loss_func",),
        "solo.losses.simsiam": ("simsiam_loss_func",),
        "solo.losses.swav": ("swav_loss_func",),
        "solo.losses.vicreg": ("vicreg_loss_func",),
        "solo.utils.lars": ("LARS",),
        "solo.utils.momentum": ("MomentumUpdater", "initialize_momentum_params"),
    },
    "dinov2": {
        "dinov2.loss.dino_clstoken_loss": ("DINOLoss",),
        "dinov2.loss.ibot_patch_loss": ("iBOTPatchLoss",),
        "dinov2.loss.koleo_loss": ("KoLeoLoss",),
    },
    "dinov3": {
        "dinov3.loss.dino_clstoken_loss": ("DINOLoss",),
        "dinov3.loss.gram_loss": ("GramLoss",),
        "dinov3.loss.ibot_patch_loss": ("SinkhornKnoppTeacher", "iBOTPatchLoss"),
        "dinov3.loss.koleo_loss": ("KoLeoLoss", "KoLeoLossDistributed"),
    },
    "open_clip": {"open_clip.loss": ("ClipLoss", "SigLipLoss")},
    "info_nce": {"info_nce": ("InfoNCE", "info_nce")},
    "pytorch_metric_learning": {
        "pytorch_metric_learning.losses.ntxent_loss": ("NTXentLoss",),
        "pytorch_metric_learning.losses.supcon_loss": ("SupConLoss",),
    },
    "timm": {"timm.utils.model_ema": ("ModelEmaV3",)},
    "contrastors": {"contrastors.loss": ("clip_loss",)},
    "grad_cache": {"grad_cache.loss": ("DistributedContrastiveLoss", "SimpleContrastiveLoss")},
}

#: library -> "module:class" -> its methods and their names in ``fastssl.compat``. Without a module: the user passes the class.
METHODS: dict[str, dict[str, dict[str, str]]] = {
    "FlagEmbedding": {
        "FlagEmbedding.abc.finetune.embedder.AbsModeling:AbsEmbedderModel": {
            "_compute_in_batch_neg_loss": "compute_in_batch_neg_loss",
            "_compute_cross_device_neg_loss": "compute_cross_device_neg_loss",
        },
    },
    "barlow": {"BarlowTwins": {"forward": "forward"}},
    "dino": {"DINOLoss": {name: f"DINOLoss.{name}" for name in ("forward", "update_center")}},
    "lightly": {"lightly.models.modules:MaskedVisionTransformerTIMM": {"preprocess": "vit_preprocess"}},
    "mae": {
        "MaskedAutoencoderViT": {
            name: name
            for name in ("forward_decoder", "forward_encoder", "forward_loss", "patchify", "random_masking", "unpatchify")
        }
    },
    "moco": {"MoCo": {name: f"MoCo.{name}" for name in ("_dequeue_and_enqueue", "_momentum_update_key_encoder")}},
    "mocov3": {
        "MoCo": {"contrastive_loss": "contrastive_loss", "_update_momentum_encoder": "update_momentum_encoder"},
    },
    "sentence_transformers": {
        f"{_OF_SENTENCES}.multiple_negatives_ranking:MultipleNegativesRankingLoss": {
            "compute_loss_from_embeddings": "compute_loss_from_embeddings"
        },
        f"{_OF_SENTENCES}.cached_multiple_negatives_ranking:CachedMultipleNegativesRankingLoss": {
            "calculate_loss": "calculate_loss"
        },
    },
    "supcon": {"SupConLoss": {"forward": "forward"}},
    "swav": {"main_swav": {"distributed_sinkhorn": "distributed_sinkhorn"}},
    "swift": {"swift.loss.embedding:InfonceLoss": {"__call__": "call"}},
    "tevatron": {"tevatron.retriever.modeling.encoder:EncoderModel": {"forward": "forward"}},
    "transformers": {
        f"{_OF_TRANSFORMERS}.vit_mae.modeling_vit_mae:ViTMAEEmbeddings": {
            "random_masking": "random_masking",
            "forward": "embeddings_forward",
        },
        f"{_OF_TRANSFORMERS}.vit_mae.modeling_vit_mae:ViTMAEDecoder": {"forward": "decoder_forward"},
        f"{_OF_TRANSFORMERS}.vit_mae.modeling_vit_mae:ViTMAEForPreTraining": {"forward": "forward"},
        f"{_OF_TRANSFORMERS}.clip.modeling_clip:CLIPModel": {"forward": "clip_forward"},
        f"{_OF_TRANSFORMERS}.siglip.modeling_siglip:SiglipModel": {"forward": "siglip_forward"},
        f"{_OF_TRANSFORMERS}.siglip2.modeling_siglip2:Siglip2Model": {"forward": "siglip2_forward"},
        f"{_OF_TRANSFORMERS}.wav2vec2.modeling_wav2vec2:Wav2Vec2ForPreTraining": {"forward": "wav2vec2_forward"},
    },
    "vicreg": {"VICReg": {"forward": "forward"}},
}
#: Repositories that are no package, and the class that the user passes.
BROUGHT = {
    "barlow": "BarlowTwins",
    "dino": "DINOLoss",
    "mae": "MaskedAutoencoderViT",
    "moco": "MoCo",
    "mocov3": "MoCo",
    "supcon": "SupConLoss",
    "vicreg": "VICReg",
}
#: Repositories that are no package, and the module whose functions are swapped: the user passes it.
SCRIPTS = {"swav": "main_swav"}
#: Names that older versions of a library lack: there they are left out.
LATER = {"lightly.loss.ibot_loss": ("IBOTPlusPlusPatchLoss",)}
#: Methods that call no module of the model. Where they refuse a call, nothing ran before.
LEAVES = {
    "dino": ("forward", "update_center"),
    "FlagEmbedding": ("_compute_in_batch_neg_loss", "_compute_cross_device_neg_loss"),
    "mae": ("forward_loss", "patchify", "random_masking", "unpatchify"),
    "mocov3": ("contrastive_loss",),
    "sentence_transformers": ("compute_loss_from_embeddings", "calculate_loss"),
    "supcon": ("forward",),
    "swav": ("distributed_sinkhorn",),
    "swift": ("__call__",),
    "transformers": ("forward_loss", "random_masking"),
}
#: "Class.method" -> whether a class has the version that the drop-in does the same as, where the arguments do not tell.
VERSIONS: dict[str, Callable[[Any], bool]] = {
    "EncoderModel.forward": lambda cls: not hasattr(cls, "compute_maxsim_similarity"),  # tevatron with passages in chunks
    "InfonceLoss.__call__": lambda cls: "gradient_scale" in cls.__call__.__code__.co_varnames,  # ms-swift from 4.6 on
}
#: Short name -> the library.
SHORT = {"pml": "pytorch_metric_learning"}
#: The library -> its module in ``fastssl.compat``, where the names differ.
MODULES = {"FlagEmbedding": "flag_embedding", "swift": "ms_swift"}
