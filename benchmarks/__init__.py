"""Benchmarks of fastssl against its peers. A speed is printed only for code that passed the correctness gate in the same run.

    registry.py   what is measured: works, shapes, targets        gate.py     float64 truth and the gate
    peers/        one adaptor for each library                    timing.py   turns, medians, the matrix-product limit
    runner.py     one work, one shape, every implementation       memory.py   peak memory above the inputs
    report.py     tables from result files                        plots.py    pictures from result files
    gpu.py        everything that needs a GPU, in one command     results/    one folder for each device

``fastssl bench`` is the way in; ``pytest benchmarks`` times small shapes with pytest-benchmark.
"""
