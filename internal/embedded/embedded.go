// Package embedded runs what keyledger needs inside or beside its own process:
// a NATS server with JetStream, and a private PostgreSQL from the binaries of
// the machine, or downloaded once where it has none.
//
// It promises that a directory is never open twice (two NATS servers on one
// store both acknowledge and one of them loses), that what was asked of fsync is
// read back from the running server, that data of another version is refused
// and never wiped, and that no PostgreSQL is left running when this process
// dies, however it dies.
//
// It can disappoint: on macOS the PostgreSQL child is stopped by a watching
// shell instead of the kernel; as root PostgreSQL runs as user postgres or
// nobody, which needs CAP_DAC_OVERRIDE where a parent directory is closed to
// that user; a network file system without working locks is not protected.
package embedded
