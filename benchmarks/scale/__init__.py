"""What happens beyond one machine, as tables: regions, many query servers, a failover. docs/scaling.md shows them."""
