"""What an evaluator is, what it is given, and how evaluators are discovered."""
