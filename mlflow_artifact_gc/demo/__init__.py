"""Everything on one machine, for showing and for testing: real servers, and runs in them."""
