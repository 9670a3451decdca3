"""The real scheduler under a virtual clock: workloads, costs, and the loop between them."""
