"""gpt-oss with its experts in four bits, on transformers' classes. Nothing is imported here.

modeling     the model: flat batches in, the loss in chunks out
layer        decoder layers and norms that keep and recompute little
experts      the experts: packed, or in floating point and trained for packing
attention    attention over a forest, and as a function for transformers
varlen       its form for kernels that take rows of different lengths
blocks       windowed layers as a batch of blocks, for dense kernels
loss         cross-entropy from hidden states
batch        the flat batch and its forest of segments
load         a checkpoint folder in, a model and its tokenizer out
"""
