"""The model: checkpoint layout, four-bit weights, and gpt-oss itself with packed experts and LoRA.

Nothing is imported here, so that reading a checkpoint's layout costs no torch import.
"""
