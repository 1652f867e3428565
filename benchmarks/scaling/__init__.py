"""What a loss over the rows of many GPUs costs, by the transports ``gather`` and ``ring``: ``python -m benchmarks.scaling``.

    __main__.py  the command                                 model.py   the formulas, and the predictions made from them
    links.py     what NVLink and InfiniBand reach            events.py  the ring, step by step and rank by rank
    compute.py   what the kernels are predicted to reach     page.py    the tables and the picture of docs/scaling.md

Imports ``benchmarks.core`` and ``report``.
"""
