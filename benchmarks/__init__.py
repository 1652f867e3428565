"""Benchmarks of fastssl against its peers. A speed is printed only for code that passed the correctness gate in the same run.

    registry.py   the losses: shapes, targets; all works          updates.py  EMA, queue, optimizers: shapes, targets
    work.py       what a loss, an update and a target are         gate.py     float64 truth and the gate
    peers/        one adaptor for each library                    timing.py   turns, medians, the machine's own rates
    prepared.py   inputs and truth of one work at one shape       memory.py   peak memory above the inputs
    runner.py     one work, one shape, every implementation       plots.py    pictures from result files
    report.py     tables from result files                        results/    one folder for each device
    gpu.py        everything that needs a GPU, in three parts (gpu_*.py, pytest_report.py); docs/gpu.md
    tune.py       tiles of the Triton kernels, timed (tune_*.py)   steps.py    whole training steps, before and after (steps_*.py)
    predict.py    what the machine code of a tile says of its speed

``fastssl bench`` is the way in; ``pytest benchmarks`` times small shapes with pytest-benchmark.
"""
