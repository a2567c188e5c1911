"""What stages leave for each other: each kind of artifact with its schema, files and reader."""
