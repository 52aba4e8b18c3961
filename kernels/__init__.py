"""Kernels as NumPy references; GPU kernels are held to them and the CPU runtime calls them."""
