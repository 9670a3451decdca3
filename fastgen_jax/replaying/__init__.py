"""Running a logged run again, decision by decision and token by token."""
