"""What the commands print: progress while they run, and tables at the end."""
