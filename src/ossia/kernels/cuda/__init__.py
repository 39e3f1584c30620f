"""The hot loops on NVIDIA GPUs."""
