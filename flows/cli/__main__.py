"""The `albat` command as a module."""

from flows.cli import main

main()
