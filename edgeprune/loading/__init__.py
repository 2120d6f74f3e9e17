"""What comes from outside: checked before anything is made of it."""
