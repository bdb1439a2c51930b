"""`python -m robustsim` is the `robustsim` command."""

from robustsim.cli import main

main()
