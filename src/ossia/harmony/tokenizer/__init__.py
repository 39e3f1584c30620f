"""The vocabulary of gpt-oss: its files, the fast encoder, tokens and text."""
