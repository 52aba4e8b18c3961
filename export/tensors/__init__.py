"""Which tensors a model has, what they are called and where each is found."""
