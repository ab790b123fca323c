"""What every service runs on: settings, server, errors, logs, metrics, database engines. No domain word in here."""
