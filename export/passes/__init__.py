"""One idea a file: what AutoVLA's fixed request shape lets us compute at build time."""
