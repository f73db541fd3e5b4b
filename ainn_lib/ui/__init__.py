"""Explorers, dashboard and drawings."""
