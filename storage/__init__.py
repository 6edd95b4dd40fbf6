"""Bytes on disk that can be trusted."""
