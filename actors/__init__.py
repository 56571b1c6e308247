"""Dendrite on a Ray cluster."""
