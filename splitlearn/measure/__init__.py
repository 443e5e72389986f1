"""What a run costs and how it goes: measured, written, and shown."""
