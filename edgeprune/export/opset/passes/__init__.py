"""What each op that changed its meaning was before: one file each."""
