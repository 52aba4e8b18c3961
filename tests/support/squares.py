"""Work that other processes can import."""


def square(seed):
    return {"seed": seed, "square": seed**2}
