"""Measure matching: workloads, peers, correctness, speed."""
