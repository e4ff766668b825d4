"""Benchmarks of the product as its users run it, for ``make bench``; pytest does not collect them.

Here: contestants, inputs, measuring, printing. Not here: any limit on correctness (the tests).
"""
