"""`edgeprune sweep`: the curve of loss and accuracy against latency, from one scoring pass."""
