"""Ahead of time, on a host: checkpoint -> graph -> passes -> precision -> engine bundle."""
