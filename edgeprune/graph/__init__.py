"""One torch.fx graph of a model, in canonical form."""
