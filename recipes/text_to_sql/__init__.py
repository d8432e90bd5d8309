"""The text-to-SQL task: databases, questions, grading, training and its report."""
