"""Many tenants that train and sample at once for a long time: `python -m bench.soak`."""
