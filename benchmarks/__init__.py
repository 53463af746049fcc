"""One script a question; each prints one table. What was measured, and where, is in results/."""
