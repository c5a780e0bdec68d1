"""Methods, one file a paper; what several of them share stands in `parts`."""
