"""What ``cluster`` promises."""
