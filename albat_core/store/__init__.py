"""What is kept: files local or remote, claims, artifacts and the keys of stages."""
