"""The Temporal workflows of a worker. Code here decides by recorded facts only and replays for ever."""
