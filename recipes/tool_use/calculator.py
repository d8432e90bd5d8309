"""The tool: what an expression of the model's comes to. Runs in the sandbox alone, where it may be any Python."""


def calculate(expression: str) -> str:
    """Its value as text; raises whatever it raises."""
    return str(eval(expression))
