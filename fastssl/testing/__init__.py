"""The table of op cases that tests and benchmarks share, and the rule by which results are compared."""
