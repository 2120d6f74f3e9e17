"""Layers as linear maps on data: what scoring and recovery have in common."""
