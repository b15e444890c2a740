"""The jobs: one `run(spec, options)` per kind, and what they share."""
