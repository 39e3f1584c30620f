"""The hot loops in plain torch: the truth that every other device's kernels are checked against."""
