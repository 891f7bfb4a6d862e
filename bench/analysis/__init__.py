"""From collected records to intervals, tables and figures; nothing here needs (or imports) torch."""
