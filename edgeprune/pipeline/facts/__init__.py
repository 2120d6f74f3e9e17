"""What a report shows in pictures, gathered from what a run knows."""
