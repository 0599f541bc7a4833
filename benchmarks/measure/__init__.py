"""Time by turns, results, tables and plots, for every op."""
