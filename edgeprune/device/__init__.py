"""What a device is and what kernels cost on it."""
