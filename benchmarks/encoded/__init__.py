"""What samples that lie encoded cost and save: decoding on access, bytes, quality, mixtures, and a part on the disk.

    python -m benchmarks.encoded        # about fifteen minutes

Measured with the real pictures and clips of the corpora beside the checkout. Ratios are of things that were timed in
turn in one process, and figures are medians over repeats. Results go to benchmarks/results/encoded/ as JSON; `make
bench-report` makes the page of them.
"""
