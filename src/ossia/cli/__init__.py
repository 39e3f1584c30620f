"""The stages in a terminal: parse, call a stage, print. One module per verb; no logic of its own."""
