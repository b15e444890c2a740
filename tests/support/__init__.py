"""Builders, servers and proxies that the tests share."""
