"""metarun's engine beside other libraries, on the same pieces of work. See README.md here."""
