"""Everything that is done on a machine with a GPU, in two calls. Imports ``benchmarks.core``, ``peers`` and ``report``."""
