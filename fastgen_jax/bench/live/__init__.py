"""Load on a real engine or server: the simulator's workloads, sent in real time."""
