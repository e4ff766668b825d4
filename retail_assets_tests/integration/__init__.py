"""What crosses a process or a whole domain."""
