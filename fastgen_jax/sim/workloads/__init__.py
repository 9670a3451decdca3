"""Who sends what, when: closed and open loops, conversations, traces."""
