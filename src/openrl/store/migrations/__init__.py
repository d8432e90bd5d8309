"""Steps that bring a database to the shape of `schema.py`; run whenever a store opens."""
