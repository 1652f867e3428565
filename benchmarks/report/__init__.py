"""Tables, pictures and the pages of numbers, made from result files. Imports ``benchmarks.core``.

tables.py     a result as tables                 plots.py     a result as pictures
pages.py      the numbers of README.md and docs/benchmarks.md; ``python -m benchmarks.report`` writes them
"""
