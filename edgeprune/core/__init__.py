"""What every room may use: errors, budgets, files, time, processes."""
