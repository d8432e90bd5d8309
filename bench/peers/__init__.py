"""Other programs on the same workloads as ours."""
