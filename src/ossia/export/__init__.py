"""Stage 5: a tuned model that other programs load, and a report of what the writing did to it.

Nothing is imported here, so that asking for help costs no torch import.
"""
