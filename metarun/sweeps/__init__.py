"""Many runs by one command, each a process of its own."""
