"""Compressing any network and comparing what it costs and saves."""
