"""Results -> rows, boards, ranks and tables. Imports no torch and writes nothing."""
