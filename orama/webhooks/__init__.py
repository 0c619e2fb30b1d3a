"""What happens in rooms, told to an application over HTTP: signed, in order within a room, at least once."""
