"""Numbers without artifacts: losses, gradients, theory, weights, bootstrap."""
