"""Messages between scheduler and workers, and their transport."""
