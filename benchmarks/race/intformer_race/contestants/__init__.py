"""Programs that race, one file each: protocol.py says what they are told and what they answer."""
