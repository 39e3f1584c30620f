"""The hot loops on NVIDIA GPUs. What is not here is plain torch there.

flash    attention of rows of different lengths by torch's flash operators
"""
