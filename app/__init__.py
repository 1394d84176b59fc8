"""Tonnage: training-capacity planning. This package imports nothing until one of its parts is asked for."""

__version__ = "0.1.0"
