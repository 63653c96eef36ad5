"""How fast it is: a developers' tool, no part of the package.

    python -m benchmarks --size=small --seconds=0.3
    python -m benchmarks --only=steps,query
    python -m benchmarks --against=torch --only=steps --cores=1
    python -m benchmarks --only=steps --steps=mapping --dtype=bfloat16

The first times everything at toy size, the second the training steps and the
queries of the default configuration. The third times the same networks in
PyTorch, turn by turn in one process (`python -m pip install -e '.[bench]'`).
The fourth times one training step in bfloat16, beside that matmul's peak. Each
prints a table and writes JSON with all digits, the machine and its load
beside them.

Milliseconds of a shared machine mean little; what compares is what one run
measured side by side: shares of the machine's own peaks, and ratios. On an
accelerator training steps are timed by twenties, as it gets the next one before
the last has ended.
"""
