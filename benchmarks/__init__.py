"""Benchmarks of Ossia beside its peers.

    __main__      runs benchmarks and writes their JSON
    startup       the time of `ossia --help`
    harmony       the compiler, the renderer and the parser beside openai-harmony
    kernels       the kernels of a CPU beside plain torch
    train_step    a LoRA step beside transformers and PEFT
    trees         prefix sharing beside training without it, and beside TRL
    tree_sets     the conversations that `trees` trains on
    against       the speed of this tree beside another revision

The benchmarks startup to trees have a function `run(cuda: bool) -> dict`. `python -m benchmarks` runs them all. Results
go to benchmarks/results/<name>[-cuda].json with the machine and the date. All figures of one file come from one call on
one machine. Compare figures only within a file.
"""
