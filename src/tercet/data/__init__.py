"""From text files to records, and from records to tokens."""
