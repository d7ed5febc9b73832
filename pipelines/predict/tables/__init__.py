"""Tables: the parts of a run committed to Iceberg or Delta as they are, once."""
