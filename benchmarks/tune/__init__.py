"""Tiles of the Triton kernels: which ones are worth trying, their times, and what their machine code promises.

    __main__.py   python -m benchmarks.tune: times candidates on a GPU, or lists them without one
    cases.py      the launches that are timed               candidates.py  tiles that compile without spilling
    worker.py     the processes that compile and time       predict.py     speed read from machine code

Imports ``benchmarks.core`` and ``benchmarks.report``.
"""
