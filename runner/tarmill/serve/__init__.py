"""How a job tells its story where nobody looks at a terminal: status over HTTP, last words for whoever started it."""
