"""The tokenizer of gpt-oss, `o200k_harmony`.

    files         the four published files, rebuilt offline and checked against their SHA-256
    encoder       two encoders of the same vocabulary: that of tokenizer.json, and one that is ten times faster
    vocabulary    text <-> token ids, and the control tokens by name

This package does not import torch.
"""
