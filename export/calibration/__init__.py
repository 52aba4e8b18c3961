"""What every layer sees of real scenes, and what quantization does with it."""
