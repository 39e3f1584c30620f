"""Checkpoints on disk and on the hub: layout, reading, writing, finding, and made ones for tests."""
