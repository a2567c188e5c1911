"""The stages, one a file, named by what they do."""
