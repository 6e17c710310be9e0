"""The compiled CPU provider."""
