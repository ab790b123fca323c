"""What several services of the shop share: its views, its events, its words. A service never imports another."""
