"""Deformable attention in eight steps and Hungarian matching in five, from equation to kernel; see README.md."""
