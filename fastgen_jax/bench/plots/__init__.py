"""Plots of bench results, by matplotlib, without a display."""
