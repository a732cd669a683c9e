"""SAEBench's evaluations of one SAE: each adaptation lies beside the fault it answers."""
