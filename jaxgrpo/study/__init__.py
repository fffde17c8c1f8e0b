"""A study: many training runs from one file, side by side and resumable, then the law and a report."""
