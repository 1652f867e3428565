"""info-nce-pytorch: ``info_nce(query, positive_key, temperature=)`` in its in-batch form, one direction. It normalises both."""

from . import Peer


def _info_nce(temperature: float):
    from info_nce import info_nce

    return lambda query, positive_key: info_nce(query, positive_key, temperature=temperature)


_ONE_WAY = "one-directional: each query sees the other view's B keys only, not all 2B - 1 rows of both views"

PEER = Peer(
    "info_nce_pytorch",
    {"info_nce": _info_nce},
    distribution="info-nce-pytorch",
    module="info_nce",
    differs={"nt_xent": _ONE_WAY, "dcl": _ONE_WAY},
    max_rows={"cpu": 16384},
)
