"""The tokenizer of gpt-oss, `o200k_harmony`.

files         the four published files, rebuilt offline and checked against their SHA-256
encoder       two encoders of the same vocabulary: the file's own, and a ten times faster one
vocabulary    text <-> ids, with the control tokens by name
"""
