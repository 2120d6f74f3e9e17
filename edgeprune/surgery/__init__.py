"""Making tensors smaller, in the graph and in the user's class, and the proof of it."""
