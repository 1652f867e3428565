"""Whole training steps before and after fastssl: ``python -m benchmarks.steps``.

    __main__.py  which steps, how they are measured        clock.py     where time and memory of a step go
    common.py    what the steps share                      contrast.py  SimCLR, CLIP, MoCo      mae.py  MAE
    report.py    tables

Imports ``benchmarks.core``, ``peers`` and ``report``.
"""
