"""What each op does to labels, a family a module."""
