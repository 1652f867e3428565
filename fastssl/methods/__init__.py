"""Self-supervised methods as thin modules: an encoder, a head, and ``forward(views) -> loss``, usable in any training loop."""

from ._common import return_dict
from ._frame_encoder import FrameEncoder
from ._permutations import distant_permutations
from ._spectrogram import LogMel
from ._vit import VisionTransformer
from .amdim import AMDIM
from .audio_mae import AudioMAE
from .barlow_twins import BarlowTwins
from .bert import BERT
from .byol import BYOL
from .clip import CLIP
from .cmc import CMC
from .cola import COLA
from .color_tracking import ColorTracking
from .colorization import Colorization
from .cpc import CPC
from .deepcluster import DeepCluster
from .dim import DIM
from .dino import DINO
from .entropy_minimization import EntropyMinimization
from .exemplar import Exemplar
from .fixmatch import FixMatch
from .frame_order import FrameOrder
from .gpt import GPT
from .ibot import IBOT
from .ijepa import IJEPA
from .image_gpt import ImageGPT
from .inpainting import Inpainting
from .instdisc import InstDisc
from .jigsaw import Jigsaw
from .lejepa import LeJEPA
from .mae import MAE
from .mean_teacher import MeanTeacher
from .moco import MoCo
from .moco_v3 import MoCoV3
from .multi_format import MultiFormat
from .next_frame import NextFrame
from .nnclr import NNCLR
from .noisy_student import NoisyStudent
from .pirl import PIRL
from .relative_position import RelativePosition
from .rotnet import RotNet
from .sentence_pairs import NextSentence, SentenceOrder
from .siglip import SigLIP
from .simclr import SimCLR
from .simcse import SimCSE
from .simmim import SimMIM
from .simsiam import SimSiam
from .skip_thought import QuickThoughts, SkipThought
from .split_brain import SplitBrain
from .supcon import SupCon
from .swav import SwAV
from .t5 import T5
from .time_contrastive import TimeContrastive
from .track_triplets import TrackTriplets
from .vicreg import VICReg
from .wav2vec2 import Wav2Vec2
from .word2vec import Word2Vec

__all__ = [
    "AMDIM",
    "BERT",
    "BYOL",
    "CLIP",
    "CMC",
    "COLA",
    "CPC",
    "DIM",
    "DINO",
    "GPT",
    "IBOT",
    "IJEPA",
    "MAE",
    "NNCLR",
    "PIRL",
    "T5",
    "AudioMAE",
    "BarlowTwins",
    "ColorTracking",
    "Colorization",
    "DeepCluster",
    "EntropyMinimization",
    "Exemplar",
    "FixMatch",
    "FrameEncoder",
    "FrameOrder",
    "ImageGPT",
    "Inpainting",
    "InstDisc",
    "Jigsaw",
    "LeJEPA",
    "LogMel",
    "MeanTeacher",
    "MoCo",
    "MoCoV3",
    "MultiFormat",
    "NextFrame",
    "NextSentence",
    "NoisyStudent",
    "QuickThoughts",
    "RelativePosition",
    "RotNet",
    "SentenceOrder",
    "SigLIP",
    "SimCLR",
    "SimCSE",
    "SimMIM",
    "SimSiam",
    "SkipThought",
    "SplitBrain",
    "SupCon",
    "SwAV",
    "TimeContrastive",
    "TrackTriplets",
    "VICReg",
    "VisionTransformer",
    "Wav2Vec2",
    "Word2Vec",
    "distant_permutations",
    "return_dict",
]
