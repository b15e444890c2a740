"""The command line: options to a spec, one job, output. Each command has a file; this layer alone knows exit codes."""
