"""What the four services share. Nothing here knows any one service."""
