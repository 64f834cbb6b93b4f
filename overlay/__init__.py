"""The contract between gateware and software: every width, offset, field and format, written once."""
