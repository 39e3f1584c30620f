"""Measuring a tuned model against its base, on questions neither has seen."""
