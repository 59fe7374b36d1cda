"""What every other package stands on: errors that become one line, text for a terminal, and seeds."""
