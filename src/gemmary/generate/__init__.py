"""Engines, scheduler and sampling behind one Generator protocol."""
