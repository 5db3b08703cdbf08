"""The experiments of ``benchmarks/methods.py``: one module for each, and what they share."""
