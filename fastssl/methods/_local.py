"""What DIM and AMDIM share: global features and those of all places of inner maps, in one space where they are compared."""

from collections.abc import Sequence

from torch import Tensor, nn

from ._checks import check_widths
from ._common import PlainMethod, ProjectionHead
from ._encoder import of_width
from ._maps import map_widths, with_maps


class LocalMethod(PlainMethod):
    """An encoder, a head for its features, and one for the places of each of ``layers``, whose names ``argument`` gave."""

    def __init__(self, backbone: nn.Module, layers: Sequence[str], argument: str, feature_dim: int | None, projection_dim: int):
        name = type(self).__name__
        check_widths(name, projection_dim=projection_dim)
        super().__init__(backbone, feature_dim)
        widths = map_widths(name, backbone, layers, argument)
        self.layers = tuple(layers)
        self.global_head = ProjectionHead(self.feature_dim, self.feature_dim, projection_dim)
        self.local_heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, projection_dim, 1, bias=False),
                nn.BatchNorm2d(projection_dim),
                nn.ReLU(inplace=True),
                nn.Conv2d(projection_dim, projection_dim, 1),
            )
            for width in widths
        )

    def project(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The embeddings that the loss compares.

        Args:
            images: (N, ...), what the backbone takes.

        Returns:
            The global ones (N, D), and for each layer those of its P = h w places (N, P, D).
        """
        output, maps = with_maps(self.backbone, images, self.layers, type(self).__name__)
        features = of_width(output, images, self.feature_dim, type(self).__name__, given="images")
        places = [head(part).flatten(2).transpose(1, 2) for head, part in zip(self.local_heads, maps, strict=True)]
        return self.global_head(features), places
