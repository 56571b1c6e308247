"""Dendrite over HTTP: OpenAI's API, trees and searches, on Ray Serve or in one process."""
