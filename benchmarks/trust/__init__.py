"""What maps say of their own errors, held against measured sections."""
