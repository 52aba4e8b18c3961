"""Lines about compiled graphs, from tests to the summary of their run."""

COMPILED = "compiled by TensorRT for RTX"
"""Property of a test's report."""
