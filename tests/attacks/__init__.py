"""What has been done to TURN servers, done to ours: each test names the report or commit that it comes from."""
