"""One file per backend: the described model becomes files of that backend's engine."""
