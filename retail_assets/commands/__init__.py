"""What the commands do, one module a command; cli.py only reads their arguments."""
