"""Readers of the file formats that checkpoints and codebooks come in; none executes anything."""
