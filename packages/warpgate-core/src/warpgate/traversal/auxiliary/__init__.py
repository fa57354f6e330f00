"""The core's own auxiliaries: strategies of phase None that ``auto_connect`` never dispatches."""
