"""The `albat` command as a module."""

from flows.cli import main

if __name__ == "__main__":  # processes that tasks run in import this module too
    main()
