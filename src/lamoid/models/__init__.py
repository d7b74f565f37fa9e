"""An architecture each, top to bottom on one page. No model knows a file format."""
