"""metarun: is a meta-learned start better than a pre-trained one, on your tasks, at what cost?"""

__version__ = "0.1.0"
