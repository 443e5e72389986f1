"""What a server that is curious, or malicious, gets to see: kept for research, attacked, and defended."""
