"""What ``net`` promises."""
