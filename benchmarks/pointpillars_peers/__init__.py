"""PointPillars by several libraries, each in a process of its own; see benchmarks/cpu_peers.py."""
