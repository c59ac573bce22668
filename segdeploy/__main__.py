"""`python -m segdeploy` is the `segdeploy` command."""

from segdeploy.cli import main

main()
