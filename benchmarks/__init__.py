"""Benchmarks: each module has `run(cuda: bool) -> dict` and says what it compares.

`python -m benchmarks` runs them all.

Results go to benchmarks/results/<name>[-cuda].json with the machine and the date. Figures of one file come from one
process on one machine; only ratios within a file mean anything.
"""
