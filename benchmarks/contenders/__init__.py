"""What is measured side by side: mclst and its peers."""
