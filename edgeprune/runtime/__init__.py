"""Where files run: another process, another machine."""
