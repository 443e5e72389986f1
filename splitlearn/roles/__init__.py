"""Who talks when: the server, its clients, and who of them is there."""
