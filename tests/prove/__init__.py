"""Large proofs, which take too long for the tests. They are resumable and write JSON to benchmarks/results.

    make prove parser          1,000,000 random and mutated token streams through the Harmony parser
    make prove harmony         20,000 conversations against both Harmony libraries, token for token
    make prove examples        20,000 conversations, every training example against the prompts of inference
    make prove faults          2,200 mutations of every kind of file: a sentence, or the same result
    make prove kills           130 trainings killed, terminated or out of disk, then resumed bit for bit
    make prove rehearsal       real training steps on a gpt-oss-20b of full size (13.8 GB of disk)

The tests run a sample of the first three with a fixed seed. A proof is a module in this folder with a number `CHUNKS`
and two functions. `run_chunk(number)` returns counts. `verdict(totals)` returns the contents of the JSON, with
`passed`. A stopped proof continues with the missing chunks, if the source has not changed.
"""
