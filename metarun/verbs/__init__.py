"""The commands beside a run, as `metarun VERB`; `compare` and `sync` stand with what they do."""
