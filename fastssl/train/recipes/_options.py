"""Options that several methods take: the types of fields of their settings."""

from typing import Annotated

from fastssl.train.settings import Option

PatchSize = Annotated[
    int | None,
    Option(
        "side in pixels of the patches of --backbone vit",
        least=1,
        default="the smallest one, from 4 on, that makes at most 16 x 16 patches",
    ),
]
Temperature = Annotated[float, Option("temperature of {loss}", above=0)]
HiddenDim = Annotated[int | None, Option("hidden width of the projection head", least=1, default="the encoder's width")]
ProjectorDim = Annotated[int | None, Option("hidden width of the projector", least=1, default="the width of the embeddings")]
ProjectionDim = Annotated[int, Option("width of the embeddings that the loss compares", least=1)]
QueueSize = Annotated[int | None, Option("embeddings in the queue", least=1, default="half of the training images, at most 65536")]
Momentum = Annotated[float, Option("share of the teacher that a step keeps, at the first step", above=0, most=1)]
FinalMomentum = Annotated[
    float, Option("share of the teacher that the last step keeps; half a cosine leads to it", above=0, most=1)
]
Negatives = Annotated[
    str,
    Option(
        "what the loss compares the rows of a process with: global, with the rows of all processes, as one process would with the "
        "joined batch; local, with its own only",
        choices=("global", "local"),
    ),
]
Frozen = Annotated[float, Option("share of the training in which the prototypes stay as they are", least=0, most=1)]
Centering = Annotated[
    str,
    Option(
        "what keeps all images from having one prototype: center, a moving mean of the teacher's outputs, or sinkhorn, balanced "
        "batches as in DINOv2",
        choices=("center", "sinkhorn"),
    ),
]
Statistics = Annotated[
    str,
    Option(
        "which rows the statistics of the loss are over: global, those of all processes, as in one process with the joined batch; "
        "local, those of a process alone",
        choices=("global", "local"),
    ),
]
Threshold = Annotated[float, Option("probability from which on the class of an image without a label is believed", least=0, most=1)]
MaskRatio = Annotated[float, Option("share of the patches that is removed", above=0, most=1)]
OWN_DATA = "use fastssl.methods in a loop of your own, see docs/methods.md"  # where the help text refuses data
