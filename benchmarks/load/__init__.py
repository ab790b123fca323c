"""The load generator: h2load, a program in C++, and what makes it speak gRPC with a body of its own for each call."""
