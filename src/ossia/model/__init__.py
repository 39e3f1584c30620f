"""gpt-oss with its experts in four bits, on transformers' classes. Nothing is imported here.

    load         loading a model and its tokenizer from a checkpoint folder
    modeling     the model, which takes flat batches and computes the loss in chunks
    batch        the flat batch and its forest of segments
    layer        decoder layers and norms that keep and recompute little
    experts      the experts: packed, or in floating point and trained for packing
    attention    attention over a forest, and the attention function for transformers
    varlen       attention over a forest for kernels that take rows of different lengths
    blocks       windowed layers as a batch of blocks, for dense kernels
    loss         cross-entropy from hidden states

`varlen` and `blocks` prepare a forest for two of the three forms of attention (`ossia.kernels.dispatch.Form`).
"""
