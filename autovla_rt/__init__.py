"""Compile AutoVLA driving vision-language-action models for edge devices, and run them."""

__version__ = "0.1.0"
