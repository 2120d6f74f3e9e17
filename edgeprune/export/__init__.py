"""From a graph to files that prove equal to it, and what they cost."""
