"""What kernels cost on a device, read from a graph or from a file."""
