"""Tiles of the Triton kernels: which ones are worth trying, their times, and what their machine code promises.

Imports ``benchmarks.core`` and ``benchmarks.report``.
"""
