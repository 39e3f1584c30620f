"""Stage 4: a tuned model measured against its base, on questions neither has seen.

tasks         what is asked, and what is measured in an answer
language      which language a text is in, sentence by sentence
runner        asks both models, and writes down everything that came back
report        the figures: each measure before and after, over all questions and by group
statistics    intervals for proportions and for paired differences
"""
