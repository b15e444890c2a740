"""The operator that runs tarmill jobs on Kubernetes."""
