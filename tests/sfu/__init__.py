"""What ``sfu`` promises."""
