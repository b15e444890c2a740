"""Pure planning: specs, names and sizes in; tasks, job ids and counts out."""
