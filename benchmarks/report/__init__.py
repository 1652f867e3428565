"""Tables and pictures made from result files. Imports ``benchmarks.core``."""
