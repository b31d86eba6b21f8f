"""`python -m fsad` is the command `fsad`."""

from fsad.cli import main

main()
