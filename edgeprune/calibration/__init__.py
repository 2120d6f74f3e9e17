"""Fitting a profile to a machine: what is measured there, and what is made of it."""
