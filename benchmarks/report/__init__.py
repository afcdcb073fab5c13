"""The page of benchmarks, docs/explanation/benchmarks.md, made of the JSON that the benchmarks leave.

    python -m benchmarks.report             # benchmarks/results/*/results.json -> docs/explanation/benchmarks.md

Nothing is measured here. The same JSON gives the same page to the byte, and with the same matplotlib the same charts.
"""
