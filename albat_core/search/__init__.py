"""Search: the space vectors live in, indexes of them."""
