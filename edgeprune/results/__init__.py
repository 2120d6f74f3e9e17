"""What a run wrote, taken up again."""
