"""`python -m mrmill` is the `mrmill` command."""

from mrmill.cli import main

main()
