"""Data that calibrates, trains and measures."""
