"""What all other packages use: errors that become one line, text for a terminal, and seeds."""
