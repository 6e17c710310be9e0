"""What a map has to beat: predictions from the same data that see less, compared by paired intervals."""
