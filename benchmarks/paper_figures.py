"""What the FastGen paper's figures show of Llama-2-70B on four A100, read off by eye (about 3 %).

Holmes et al., 2024, arXiv 2401.08671, and its blog. Throughput is clients over mean latency, as in
the paper's plots. vLLM is that of November 2023.
"""

from __future__ import annotations

from typing import NamedTuple

CLIENTS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32)
TOKEN_RATES = (2, 4, 6)
ENGINES = ("fastgen", "vllm")


class CurvePoint(NamedTuple):
    """One number of clients on a curve of latency over throughput."""

    clients: int
    requests_per_second: float
    latency: float


# (prompt tokens, output tokens), engine -> first, a middle, last point.
CURVES: dict[tuple[tuple[int, int], str], tuple[CurvePoint, ...]] = {
    ((2600, 60), "fastgen"): (
        CurvePoint(1, 0.31, 3.2),
        CurvePoint(8, 1.19, 6.8),
        CurvePoint(32, 1.53, 20.9),
    ),
    ((2600, 60), "vllm"): (
        CurvePoint(1, 0.27, 3.7),
        CurvePoint(16, 1.17, 13.6),
        CurvePoint(32, 1.34, 23.8),
    ),
    ((2600, 128), "fastgen"): (
        CurvePoint(1, 0.16, 6.1),
        CurvePoint(6, 0.68, 8.9),
        CurvePoint(32, 1.25, 25.5),
    ),
    ((2600, 128), "vllm"): (
        CurvePoint(1, 0.14, 7.3),
        CurvePoint(8, 0.66, 12.1),
        CurvePoint(32, 1.06, 30.2),
    ),
}

# Effective throughput at 2600/60 by clients: engine, tokens per second -> requests per second.
EFFECTIVE: dict[tuple[str, int], tuple[float, ...]] = {
    ("fastgen", 2): (0.31, 0.54, 0.86, 1.06, 1.18, 1.35, 1.42, 1.37, 1.01, 0.22, 0.03),
    ("fastgen", 4): (0.31, 0.54, 0.86, 1.06, 1.18, 1.35, 1.42, 1.37, 1.01, 0.22, 0.03),
    ("fastgen", 6): (0.31, 0.53, 0.74, 0.77, 0.64, 0.23, 0.02, 0.0, 0.0, 0.0, 0.0),
    ("vllm", 2): (0.27, 0.45, 0.67, 0.80, 0.86, 0.89, 0.79, 0.56, 0.33, 0.12, 0.03),
    ("vllm", 4): (0.27, 0.44, 0.61, 0.63, 0.47, 0.07, 0.01, 0.0, 0.0, 0.0, 0.0),
    ("vllm", 6): (0.27, 0.40, 0.31, 0.10, 0.03, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0),
}

# Seconds between tokens at 2600/128 with 16 clients.
TOKEN_SECONDS: dict[str, dict[str, float]] = {
    "fastgen": {"p50": 0.072, "p90": 0.185, "p95": 0.188},
    "vllm": {"p50": 0.076, "p90": 0.385, "p95": 0.695},
}

EFFECTIVE_RATIO = 2.3  # of the peaks at 4 tokens per second
LATENCY_RATIO = 2.0  # vLLM's over FastGen's at EQUAL_RATE requests per second
EQUAL_RATE = 1.2
P95_RATIO = 3.7
