"""One command in several processes, or SLURM jobs, that share its work."""
