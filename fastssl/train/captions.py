"""Captions of the ``photos`` pictures: image-caption pairs for CLIP and SigLIP.

Every picture has six captions that say the same in different words; four are for training, the last two for the test, and a
test image is a crop of the part that no training crop shows. So neither image nor sentence of a test pair was ever seen.
"""

from dataclasses import dataclass

from torch import Tensor

from fastssl.train.data import photos
from fastssl.train.samples import ImageSamples
from fastssl.train.text import WordTokenizer

HELD_OUT = 2
CAPTIONS = {
    "astronaut": (
        "a portrait of an astronaut in an orange space suit",
        "a smiling woman astronaut in front of a flag and a model shuttle",
        "an official photograph of a space traveller in her flight suit",
        "a woman in an orange pressure suit with a white helmet",
        "a photograph of a smiling astronaut",
        "the portrait of a woman in a space suit",
    ),
    "brick": (
        "a wall of grey bricks seen at an angle",
        "rows of bricks with pale mortar joints",
        "the texture of a brick wall",
        "masonry: long narrow bricks in a regular bond",
        "a grey brick wall with mortar joints",
        "the regular rows of a masonry wall",
    ),
    "camera": (
        "a cameraman in a dark coat looks through his camera",
        "a man photographing with a camera on a tripod",
        "a photographer at work on a lawn, in black and white",
        "a man in a black coat behind a tripod",
        "a photographer with a camera and a tripod",
        "a cameraman at work in a dark coat",
    ),
    "cat": (
        "a photograph of a tabby cat's face",
        "a ginger cat looking at the camera",
        "a close view of a house cat with green eyes and whiskers",
        "the striped fur and pink nose of a pet cat",
        "the face of a ginger house cat",
        "a striped tabby pet with whiskers",
    ),
    "cell": (
        "a single cell under a microscope",
        "a bright round cell on a dark grey background",
        "a micrograph of one living cell, a phase image",
        "a small white disk with a halo: a cell in saline",
        "a round cell with a bright halo",
        "a micrograph of a single living cell",
    ),
    "coffee": (
        "a cup of coffee on a red saucer",
        "espresso in a white cup with a spoon",
        "a hot drink on a wooden table",
        "a small cup and a spoon on a brown wooden table",
        "an espresso on a wooden table",
        "a white coffee cup on its saucer",
    ),
    "coins": (
        "ancient coins laid out in rows",
        "greek coins from pompeii on a dark board",
        "a collection of old silver money",
        "worn round coins with heads on them",
        "rows of old greek money",
        "a collection of ancient silver coins",
    ),
    "grass": (
        "a patch of grass seen from above",
        "blades of grass and straw in a meadow",
        "a lawn of dry grass, in grey tones",
        "the texture of turf",
        "grass blades on a lawn",
        "dry turf in a meadow",
    ),
    "gravel": (
        "gravel on a path",
        "many small grey stones",
        "the texture of loose pebbles",
        "crushed stones that cover the ground",
        "a path of small pebbles",
        "loose grey stones on the ground",
    ),
    "horse": (
        "the black silhouette of a horse",
        "a horse standing, drawn in black on white",
        "the outline of a stallion with a long tail",
        "a black animal shape on an empty white page",
        "a black stallion in outline",
        "the silhouette of a standing horse",
    ),
    "Hubble field": (
        "galaxies in a deep field of the hubble telescope",
        "thousands of distant galaxies in a dark sky",
        "a deep image of the early universe",
        "small coloured spots of light in black space: faraway galaxies",
        "distant galaxies from the hubble telescope",
        "a deep field of the universe",
    ),
    "moon": (
        "the surface of the moon",
        "lunar craters and a grey plain",
        "a moonscape photographed from orbit",
        "craters and shadows on the moon",
        "a lunar plain with craters",
        "the grey surface of the moon from orbit",
    ),
    "motorcycle": (
        "a red motorcycle in a garage",
        "a motorbike parked in a workshop",
        "a shiny red motorbike with chrome parts and tools behind it",
        "a motorcycle in front of shelves",
        "a red motorbike in a workshop",
        "a parked motorcycle with chrome parts",
    ),
    "page": (
        "a scanned page of printed words",
        "a page of a manual about segmentation",
        "printed paragraphs with a headline, unevenly lit",
        "black print on a grey sheet of paper",
        "a scanned sheet with printed paragraphs",
        "a page of a printed manual",
    ),
    "retina": (
        "the retina of a human eye",
        "the back of an eye with its blood vessels",
        "a fundus image: red vessels around the optic disc",
        "an orange retina as an eye doctor sees it",
        "blood vessels of a human retina",
        "a fundus image of the back of an eye",
    ),
    "rocket": (
        "a rocket on its launch pad at dusk",
        "a rocket waiting for its launch under a blue evening sky",
        "a tall launcher between towers with bright lamps",
        "a spacecraft ready for lift off in the evening",
        "a launcher on its pad in the evening",
        "a tall rocket ready for launch at dusk",
    ),
    "text": (
        "handwritten formulas on tilted paper",
        "mathematical handwriting in dark ink",
        "letters written by hand on ruled paper",
        "symbols of a formula in somebody's handwriting",
        "a handwritten formula in ink",
        "mathematical symbols on ruled paper",
    ),
    "tissue": (
        "a stained section of tissue under a microscope",
        "brown and blue stains of immunohistochemistry",
        "histology of glands in the colon",
        "a tissue section with brown glands and blue nuclei",
        "histology: stained glands and nuclei",
        "brown and blue tissue from the colon",
    ),
}


@dataclass(frozen=True)
class CaptionData:
    """Crops with the index of their picture, and the captions of each picture as token ids; 0 is padding."""

    name: str
    train: ImageSamples
    test: ImageSamples
    image_size: int
    train_tokens: Tensor  # (pictures, captions, L) int64
    test_tokens: Tensor
    vocabulary: int
    mirror: bool = True

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.train.class_names

    def summary(self) -> str:
        counts = f"{len(self.train)} training and {len(self.test)} test images"
        per_picture = f"{self.train_tokens.shape[1]} and {self.test_tokens.shape[1]} captions"
        return f"{counts} of {self.image_size} x {self.image_size}; {per_picture} of each of {len(self.class_names)} pictures"


def captions(size: int = 32) -> CaptionData:
    """``photos`` with captions; the vocabulary is that of the training captions."""
    images = photos(size)
    texts = [CAPTIONS[name] for name in images.class_names]
    train, test = [t[:-HELD_OUT] for t in texts], [t[-HELD_OUT:] for t in texts]
    tokenizer = WordTokenizer(caption for picture in train for caption in picture)

    def table(half: list[tuple[str, ...]]) -> Tensor:
        return tokenizer([caption for picture in half for caption in picture]).unflatten(0, (len(half), -1))

    return CaptionData("captions", images.train, images.test, size, table(train), table(test), len(tokenizer))
