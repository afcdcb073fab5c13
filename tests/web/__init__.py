"""Fetching against a real, hostile server on this machine."""
