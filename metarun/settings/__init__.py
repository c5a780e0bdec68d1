"""From a command line and YAML to checked values; a mistake is one line."""
