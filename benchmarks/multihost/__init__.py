"""What the benchmarks across hosts share: a laboratory of hosts, launching, measuring."""
