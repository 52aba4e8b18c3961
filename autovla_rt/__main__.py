"""`python -m autovla_rt`."""

from autovla_rt.cli import main

main()
