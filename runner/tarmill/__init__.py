"""tarmill: map-reduce for sharded tar files."""

__version__ = "0.1.0"
