"""How an experiment takes its meta-steps: tasks at once, on several processes, or replayed."""
