"""Prompt and answer format, read from source code or TOML."""
