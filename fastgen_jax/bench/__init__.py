"""Judging runs by their requests' records, measured or simulated: plain data in, numbers out."""
