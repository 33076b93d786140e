"""A comparison as it is read and shared: tables, figures, Markdown, and one HTML page."""
