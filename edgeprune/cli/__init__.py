"""The command line: parsing, printing, and what each command does."""
