"""The integer network: its representation, the rules that it obeys, and what it computes."""
