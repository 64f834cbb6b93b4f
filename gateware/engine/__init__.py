"""The engine: its parts wired to each other, its registers, and the profile of its cycles."""
