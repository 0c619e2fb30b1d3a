"""What lasts: the data directory, the tables, and the database that they stand in."""
