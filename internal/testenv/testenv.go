// Package testenv starts the real things for tests: NATS with JetStream in the
// test's process, PostgreSQL from the machine's binaries beside it, the program
// itself as a process that may be killed, nginx and Caddy in front of it, Redis behind it.
//
// Every call registers its own cleanup; a test needs no TestMain, and nothing
// stays running or lying about after a panic or a kill of the test process, except
// nginx, Redis and Caddy in the user's cache where they had to be got.
// Nothing is ever skipped: a machine without PostgreSQL fails the test with the
// error that says how to get it.
package testenv
