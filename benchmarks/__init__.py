"""Measurements that the docs quote, and the proxy that adds a round trip."""
