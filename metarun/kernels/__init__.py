"""C kernels whose weights have a task axis, to the second derivative; torch does without them."""
