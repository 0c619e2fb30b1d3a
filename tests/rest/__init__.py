"""What ``rest`` promises."""
