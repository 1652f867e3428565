"""Benchmarks of fastssl against its peers. A speed is printed only for code that passed the accuracy check in the same run.

    core/      the workloads, the accuracy check, the runner, times, memory, the machine
    peers/     one adaptor for each library
    report/    tables and pictures from result files            results/   one folder for each device
    gpu/       everything that needs a GPU, in two calls; docs/gpu.md
    tune/      tiles of the Triton kernels: candidates, their times, what their machine code promises
    steps/     whole training steps, before and after fastssl

gpu, tune and steps import report and core; report imports core; core imports peers. Nothing is imported the other way round.
``fastssl bench`` is the way in; ``pytest benchmarks`` times small shapes with pytest-benchmark.
"""
