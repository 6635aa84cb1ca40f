"""What pages share: HTML templates and plots."""
