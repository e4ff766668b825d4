"""Benchmarks of the product as its users run it, for ``make bench``.

Here: contestants, inputs, measuring, printing. Not here: any limit on correctness (the tests).
pytest collects test_*.py alone, which are of what the benchmarks compute and not of what is fast.
"""
