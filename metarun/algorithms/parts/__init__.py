"""What algorithms are made of, beside inner loops and meta-gradients."""
