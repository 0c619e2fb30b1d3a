"""What ``store`` promises."""
