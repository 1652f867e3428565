"""What is measured and how: the workloads, the accuracy check, the runner, times, memory and the machine.

Imports ``fastssl`` and ``benchmarks.peers``, and nothing else of ``benchmarks``.
"""
