"""Everything that is done on a machine with a GPU, in two calls: ``python -m benchmarks.gpu``.

    plan.py    which stages, in which order, how long          run.py       processes with limits, and what comes back
    build.py   wheels, device properties, the build            tests.py     tests on the GPU, and their failures in short
    bench.py   all workloads: right (smoke), fast (bench)      cases.py     the process that measures a list of cases
    profile.py what binds each kernel, by Nsight Compute       prepare.py   a rehearsal before a GPU is lent
    pytest_report.py  a plugin of pytest: what has happened so far is on disk

Imports ``benchmarks.core``, ``peers`` and ``report``.
"""
