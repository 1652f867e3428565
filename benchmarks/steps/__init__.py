"""Whole training steps before and after fastssl. Imports ``benchmarks.core``, ``peers`` and ``report``."""
