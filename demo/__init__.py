"""A captioned picture and sound set that needs no hub, and a real HTTP server for it."""
