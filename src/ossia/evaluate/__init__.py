"""Stage 4: measures a tuned model against its base on held-out questions.

    tasks         the questions, and the measures of an answer
    language      the language of a text, sentence by sentence
    statistics    intervals for proportions and for paired differences
    report        the figures: each measure before and after tuning, over all questions and by group
    runner        asks both models and writes the questions, answers and verdicts to a file

The file of an evaluation is in `evals/` of the run folder, or of the folder of all runs if there is no run.
"""
