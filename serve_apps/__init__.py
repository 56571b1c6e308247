"""Holds the place of Dendrite's HTTP layer on Ray Serve. Nothing is served yet: there is no module here to run."""
