"""One script per question; each prints one table. results/ contains what was measured, with the machine."""
