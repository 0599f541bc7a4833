"""Measure deformable attention: workloads, peers, correctness, speed, memory."""
