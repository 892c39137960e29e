"""Alerts: what the rules say of the traffic, how long it lasts, and who is told."""
